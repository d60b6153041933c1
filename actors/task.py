"""Drives a program: performs its pending operation on inboxes and outboxes, then runs it to the next."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from typing import Any

from actors.errors import RunError
from actors.messages import Message
from actors.operations import (
    AwaitStop,
    Close,
    HasEnded,
    HasStopped,
    Hear,
    Operation,
    Pace,
    Poll,
    Receive,
    ReceiveAny,
    Rest,
    Send,
    Stop,
)
from actors.times import Times
from actors.transport.inbox import Inbox, first_message
from actors.transport.outbox import STOPPED, Outbox
from actors.waits import Waits

SLICE_S = 1.0
_NOT_YET = object()


class Task:
    """A program with its edges. A Ray actor's thread runs one to its end; in process, a scheduler
    advances many by turns.

    Args:
        program: what to run.
        inboxes, outboxes: its edges by name.
        times: told what the thread is busy with.
        bound_of: returns the staleness bound of an edge.
        handled_one: told the edge of every message that the program has done with.
    """

    def __init__(
        self,
        program: Generator[Operation, Any, None],
        inboxes: Mapping[str, Inbox],
        outboxes: Mapping[str, Outbox],
        times: Times,
        *,
        bound_of: Callable[[str], int | None] = lambda edge: None,
        handled_one: Callable[[str], None] = lambda edge: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inboxes, self.outboxes, self.times = inboxes, outboxes, times
        self.bound_of, self.handled_one = bound_of, handled_one
        self.waits = Waits(clock)
        self.is_done = False
        self._program = program
        self._clock = clock
        self.found_nothing = False
        """Whether the last operation was a look that found nothing; who runs many tasks gives others a turn."""
        self.handled: Counter[str] = Counter()
        """Messages of each edge that the program has done with, by its coming back for the next operation."""
        self._given: str | None = None
        self._pending: Operation | None = None
        self._since = clock()
        self._resumed: float | None = None

    @property
    def waiting_on(self) -> str | None:
        """The edge of the pending operation."""
        pending = self._pending
        return None if pending is None else pending.edge

    @property
    def waiting_s(self) -> float:
        """Seconds since the pending operation became due."""
        return 0.0 if self._pending is None else self._clock() - self._since

    @property
    def busy_s(self) -> float:
        """Seconds for which the program has been computing; 0 while it waits for an operation."""
        since = self._resumed
        return 0.0 if since is None else self._clock() - since

    def advance(self, wait_s: float) -> bool:
        """Perform the pending operation, waiting at most `wait_s`, and run on to the next one.

        Returns:
            False if the operation could not be performed in time, or the program is done.
        """
        if self.is_done:
            return False
        answer = None if self._pending is None else self._perform(self._pending, wait_s)
        if answer is _NOT_YET:
            return False
        self._resume(answer)
        return True

    def _perform(self, operation: Operation, wait_s: float) -> object:
        """Return the operation's answer, or _NOT_YET."""
        self.found_nothing = False
        match operation:
            case Receive(edge, share):
                message = self._received((edge,), share, wait_s)
                return _NOT_YET if message is None else message[1]
            case ReceiveAny(edges, share):
                return self._received(edges, share, wait_s) or _NOT_YET
            case Poll(edge, longest_s, share):
                message = self._received((edge,), share, min(wait_s, longest_s), may_end=True)
                self.found_nothing = message is None
                return None if message is None else message[1]
            case Hear(edge, share):
                with self.times.within(share):
                    return self.inboxes[edge].promised if self.inboxes[edge].hear(wait_s) else _NOT_YET
            case Send(edge, message, longest_s):
                outbox = self.outboxes[edge]
                if outbox.num_waiting < outbox.capacity:
                    return self._tried("transfer", longest_s, wait_s, lambda s: outbox.put(message, s))
                with self.waits.on(edge):
                    return self._tried("wait_output", longest_s, wait_s, lambda s: outbox.put(message, s))
            case Pace(edge, version, longest_s):
                return self._tried("wait_output", longest_s, wait_s, lambda s: self._may_finish(edge, version, s))
            case AwaitStop(edge):
                outbox = self.outboxes[edge]
                return self._tried("wait_output", None, wait_s, lambda s: outbox.wait_trainable(STOPPED, s))
            case HasStopped(edge):
                return self.outboxes[edge].has_stopped
            case HasEnded(edge):
                return self.inboxes[edge].is_closed
            case Rest(seconds):
                time.sleep(min(seconds, wait_s))
                self.found_nothing = True
            case Stop(edge):
                self.inboxes[edge].tell(STOPPED)
            case Close(edge):
                self.outboxes[edge].close()
        return None

    def _may_finish(self, edge: str, version: int, wait_s: float) -> bool:
        """Whether the staleness bound of an edge allows its producer to finish use `version`."""
        bound = self.bound_of(edge)
        return bound is None or self.outboxes[edge].wait_trainable(version - bound, wait_s)

    def _tried(self, share: str, longest_s: float | None, wait_s: float, attempt: Callable[[float], bool]) -> object:
        with self.times.within(share):
            done = attempt(wait_s if longest_s is None else min(wait_s, longest_s))
        if longest_s is None:
            return None if done else _NOT_YET
        self.found_nothing = not done
        return done

    def _received(
        self, edges: tuple[str, ...], share: str, wait_s: float, *, may_end: bool = False
    ) -> tuple[str, Message] | None:
        """Taking what is there is `transfer`; only the time in which nothing is there is waiting."""
        inboxes = [self.inboxes[edge] for edge in edges]
        with self.times.within("transfer"):
            found = first_message(inboxes, 0.0, may_end=may_end)
        if found is None and wait_s > 0.0:
            with self.times.within(share), self.waits.on(*edges):
                found = first_message(inboxes, wait_s, may_end=may_end)
        self._given = found[0] if found is not None else None
        return found

    def restart_deadline(self) -> None:
        """Count the pending operation's wait from now on."""
        self._since = self._clock()

    def run(self, deadline_s: float, stopped: Callable[[], bool], is_paused: Callable[[], bool] = bool) -> None:
        """Run the program to its end; a wait during a pause has no deadline.

        Raises:
            RunError: one operation waited longer than `deadline_s`, or `stopped` said so.
        """
        while not self.is_done:
            is_waiting = not self.advance(SLICE_S) or self.found_nothing
            if stopped() and not self.is_done:  # whoever always has work is asked too, not only who waits
                raise RunError(f"stopped at edge {self.waiting_on}")
            if is_waiting and self.waiting_s > deadline_s and not is_paused():
                raise RunError(
                    f"edge {self.waiting_on}: nothing moved for {self.waiting_s:.0f} s, expected within "
                    f"placement.deadline_s = {deadline_s:.0f}; look at the actor at its other end"
                )

    def _resume(self, value: object) -> None:
        given, self._given = self._given, None
        self._resumed = self._clock()
        try:
            self._pending = self._program.send(value)
            if not self.found_nothing:
                self._since = self._clock()
        except StopIteration:
            self._pending = None
            self.is_done = True
        finally:
            self._resumed = None
        if given is not None:
            self.handled[given] += 1
            self.handled_one(given)
