"""Where the compute thread's time goes: shares that sum to one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARES: tuple[str, ...] = (
    "compute", "evaluate", "wait_input", "wait_feedback", "wait_output", "transfer", "snapshot", "other",
)  # fmt: skip


class Times:
    """A stopwatch that is always in exactly one share; seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._spent = dict.fromkeys(SHARES, 0.0)
        self._share: str | None = None
        self._since = 0.0

    def start(self) -> None:
        """Begin to count, in `other`."""
        if self._share is None:
            self._share, self._since = "other", self._clock()

    def stop(self) -> None:
        """End the count."""
        self.enter("other")
        self._share = None

    def enter(self, share: str) -> str:
        """Switch to a share and return the one before; a stopped watch stays stopped."""
        before = self._share
        if before is None:
            return "other"
        now = self._clock()
        self._spent[before] += now - self._since
        self._share, self._since = share, now
        return before

    @contextmanager
    def within(self, share: str) -> Iterator[None]:
        """Count the body of a `with` under a share."""
        before = self.enter(share)
        try:
            yield
        finally:
            self.enter(before)

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
