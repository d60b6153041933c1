"""Drives a program: performs its pending operation on inboxes and outboxes, then runs it to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from actors.errors import RunError
from actors.messages import Message
from actors.program import Close, Program, Receive, Send
from actors.times import Times
from actors.transport.inbox import Inbox
from actors.transport.outbox import Outbox

SLICE_S = 1.0


class Task:
    """A program with its edges. A Ray actor's thread runs one to its end; in process, a scheduler
    advances many by turns."""

    def __init__(
        self,
        program: Program,
        inboxes: Mapping[str, Inbox],
        outboxes: Mapping[str, Outbox],
        times: Times,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inboxes, self.outboxes, self.times = inboxes, outboxes, times
        self.is_done = False
        self._program = program
        self._clock = clock
        self._pending: Receive | Send | Close | None = None
        self._since = clock()

    @property
    def waiting_on(self) -> str | None:
        """The edge of the pending operation."""
        pending = self._pending
        return None if pending is None else pending.edge

    @property
    def waiting_s(self) -> float:
        """Seconds since the pending operation became due."""
        return 0.0 if self._pending is None else self._clock() - self._since

    def advance(self, wait_s: float) -> bool:
        """Perform the pending operation, waiting at most `wait_s`, and run on to the next one.

        Returns:
            False if the operation could not be performed in time, or the program is done.
        """
        if self.is_done:
            return False
        if self._pending is None:
            self._resume(None)
            return True
        pending = self._pending
        if isinstance(pending, Receive):
            message = self._received(pending, wait_s)
            if message is None:
                return False
            self._resume(message)
            return True
        outbox = self.outboxes[pending.edge]
        if isinstance(pending, Close):
            outbox.close()
        else:
            with self.times.within("transfer" if outbox.num_waiting < outbox.capacity else "wait_output"):
                if not outbox.put(pending.message, wait_s):
                    return False
        self._resume(None)
        return True

    def _received(self, pending: Receive, wait_s: float) -> Message | None:
        """Taking what is there is `transfer`; only the time in which nothing is there is waiting."""
        inbox = self.inboxes[pending.edge]
        with self.times.within("transfer"):
            message = inbox.get(0.0)
        if message is not None or wait_s == 0.0:
            return message
        with self.times.within(pending.share):
            return inbox.get(wait_s)

    def run(self, deadline_s: float, stopped: Callable[[], bool]) -> None:
        """Run the program to its end.

        Raises:
            RunError: one operation waited longer than `deadline_s`, or `stopped` said so.
        """
        while not self.is_done:
            if not self.advance(SLICE_S):
                if stopped():
                    raise RunError(f"stopped while waiting on edge {self.waiting_on}")
                if self.waiting_s > deadline_s:
                    raise RunError(
                        f"edge {self.waiting_on}: nothing moved for {self.waiting_s:.0f} s, expected within "
                        f"placement.deadline_s = {deadline_s:.0f}; look at the actor at its other end"
                    )

    def _resume(self, value: Message | None) -> None:
        try:
            self._pending = self._program.send(value)  # type: ignore[arg-type]
            self._since = self._clock()
        except StopIteration:
            self._pending = None
            self.is_done = True
