"""Actors whose time is only counted: programs, their clocks, and the edges between them.

A message arrives some time after it was sent. An edge has room for another once its consumer's program has
taken an earlier one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from actors.errors import RunError
from actors.messages import Message
from actors.program import Close, Program, Receive, Send
from actors.times import Times
from actors.trace import Trace


class TimedActor:
    """A program and its clock.

    Args:
        name: of the actor.
        num_batches: of the run.
    """

    program: Program

    def __init__(self, name: str, num_batches: int) -> None:
        self.name, self.clock = name, 0.0
        self.trace = Trace([range(num_batches)], shortest_s=0.0)
        self.times = Times(lambda: self.clock, self.trace)
        self.pending: Receive | Send | Close | None = None
        self.is_done = False

    def spend(self, seconds: float) -> None:
        """Move the clock on."""
        self.clock += seconds

    def wait_until(self, share: str, when: float) -> None:
        """Move the clock to a time, if that is not past, and count the wait under a share."""
        with self.times.within(share):
            self.clock = max(self.clock, when)

    def resume(self, message: Message | None) -> None:
        """Run the program to its next operation."""
        try:
            self.pending = self.program.send(message)  # type: ignore[arg-type]
        except StopIteration:
            self.pending, self.is_done = None, True
            self.times.stop()


class TimedEdge:
    """What is on its way on an edge, and when the consumer took each message before.

    Args:
        capacity: messages that may be sent and not yet taken.
        message_s: seconds between Send and arrival.
    """

    def __init__(self, capacity: int, message_s: float) -> None:
        self.capacity, self.message_s = capacity, message_s
        self.coming: deque[tuple[float, Message]] = deque()
        self.taken: list[float] = []

    def has_room(self) -> bool:
        """Whether a message can be sent before the consumer takes another."""
        return len(self.coming) < self.capacity

    def put(self, actor: TimedActor, message: Message) -> None:
        """Send a message once there was room for it."""
        before = len(self.taken) + len(self.coming) - self.capacity
        actor.wait_until("wait_output", self.taken[before] if before >= 0 else 0.0)
        self.coming.append((actor.clock + self.message_s, message))

    def take(self, actor: TimedActor, share: str) -> Message:
        """Return the next message once it has arrived."""
        arrival, message = self.coming.popleft()
        actor.wait_until(share, arrival)
        self.taken.append(actor.clock)
        return message


def run_all(actors: Sequence[TimedActor], edges: Mapping[str, TimedEdge]) -> None:
    """Run every program to its end; the order of turns changes no time.

    Raises:
        RunError: no actor can advance.
    """
    for actor in actors:
        actor.times.start()
        actor.resume(None)
    while not all(actor.is_done for actor in actors):
        moved = [_advance(actor, edges) for actor in actors]
        if not any(moved):
            waits = ", ".join(f"{a.name} on {a.pending.edge}" for a in actors if a.pending is not None)
            raise RunError(f"nothing can advance: {waits}")


def _advance(actor: TimedActor, edges: Mapping[str, TimedEdge]) -> bool:
    """Run an actor until its next operation can't be performed yet; return whether it got anywhere."""
    moved = False
    while (pending := actor.pending) is not None:
        edge, message = edges[pending.edge], None
        if isinstance(pending, Receive):
            if not edge.coming:
                break
            message = edge.take(actor, pending.share)
        elif isinstance(pending, Send):
            if not edge.has_room():
                break
            edge.put(actor, pending.message)
        actor.resume(message)
        moved = True
    return moved
