"""Where the compute thread's time goes: shares that sum to one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from actors.stretch import Stretch
from actors.trace import Trace

SHARES: tuple[str, ...] = (
    "compute", "evaluate", "wait_input", "wait_feedback", "wait_output", "transfer", "snapshot", "other",
)  # fmt: skip


class Times:
    """A stopwatch that is always in exactly one share; seconds.

    Args:
        clock: what it reads.
        trace: keeps the spans of some batches; None: of none.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, trace: Trace | None = None) -> None:
        self._clock = clock
        self.trace = trace
        self.stretch: Stretch | None = None
        """Makes computing last longer than it does; for simulated devices."""
        self.told: Callable[[str], None] | None = None
        """Called with every share that is switched to."""
        self._spent = dict.fromkeys(SHARES, 0.0)
        self._share: str | None = None
        self.work = ""
        """What the trace calls the work of the moment."""
        self._since = 0.0

    def start(self) -> None:
        """Begin to count, in `other`."""
        if self._share is None:
            self._share, self._since = "other", self._clock()

    def stop(self) -> None:
        """End the count."""
        self.enter("other")
        self._share = None

    def now(self) -> float:
        """Return the clock's reading."""
        return self._clock()

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return sum(self.seconds().values())

    def at(self, step: int, batch_id: int | None = None) -> None:
        """Say which batch the thread works on (default: `step`) in the course of which batch, for the trace."""
        if self.trace is not None:
            self.trace.at(step, step if batch_id is None else batch_id)

    def enter(self, share: str, work: str = "") -> str:
        """Switch to a share and return the one before; a stopped watch stays stopped."""
        before = self._share
        if before is None:
            return "other"
        now = self._clock()
        self._spent[before] += now - self._since
        if self.trace is not None and before != "other":
            self.trace.add(before, self.work, self._since, now)
        self._share, self.work, self._since = share, work, now
        if self.told is not None:
            self.told(share)
        return before

    def within(self, share: str, work: str = "") -> AbstractContextManager[None]:
        """Count the body of a `with` under a share; `work` is what the trace calls it."""
        return Within(self, share, work)

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in every share so far."""
        spent = dict(self._spent)
        if (share := self._share) is not None:
            spent[share] += max(0.0, self._clock() - self._since)
        return spent

    def fractions(self) -> dict[str, float]:
        """Return the shares; they sum to 1 (all zero before the first start)."""
        spent = self.seconds()
        total = sum(spent.values())
        return {share: value / total if total else 0.0 for share, value in spent.items()}


class Within:
    """The body of a `with`, counted under a share; several for every message, so that it is no generator."""

    __slots__ = ("_before", "_begun", "_share", "_times", "_work", "_work_before")

    def __init__(self, times: Times, share: str, work: str) -> None:
        self._times, self._share, self._work = times, share, work

    def __enter__(self) -> None:
        times = self._times
        self._work_before = times.work
        self._before = times.enter(self._share, self._work)
        self._begun = times.now()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        times = self._times
        if kind is None and times.stretch is not None and self._share == "compute":
            times.stretch.after(times.now() - self._begun)
        times.enter(self._before, self._work_before)
