"""The producer's end of an edge: a bounded, numbered store from which the consumer takes.

A message stays until the consumer's program has received it and, where snapshots protect it, until
a committed checkpoint covers it (`durable`). A full outbox makes its producer wait: that is all of
our back-pressure. Sessions fence consumers of an older life; a newer session rewinds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from actors.errors import EdgeError, SessionRefused
from actors.messages import Message
from actors.transport.packet import Packet, pack

Session = tuple[int, int]
"""(incarnation of the consumer, counter): ordered, the newest one is served."""

MAX_WAIT_S = 1.0

STOPPED = 2**62
"""As `oldest_trainable`: the consumer will start training on nothing any more."""


@dataclass(frozen=True)
class Take:
    """A consumer's request. `received` and `durable` are the last sequence numbers covered (-1: none).

    With `limit` 0 it only tells the producer so, and is answered at once.
    """

    edge: str
    session: Session
    received: int
    durable: int
    oldest_trainable: int
    limit: int
    wait_s: float


@dataclass(frozen=True)
class Reply:
    """Up to `limit` packets in order, and how far the producer is.

    `handed`: every sequence number below it has been handed out in this session.
    `end`: how many messages the edge carries in all, once the producer knows it.
    """

    session: Session
    packets: tuple[Packet, ...]
    handed: int
    version: int
    end: int | None


class Outbox:
    """Bounded FIFO of one edge, for one consumer; safe to call from several threads.

    Args:
        run: name of the run, written into every header.
        edge: name of the edge.
        capacity: messages that may wait here, not yet received by the consumer.
        incarnation: which life of the producer this is.
        version: returns the producer's current version, sent with every reply.
    """

    def __init__(
        self, run: str, edge: str, capacity: int, *, incarnation: int = 0, version: Callable[[], int] = int
    ) -> None:
        if capacity < 1:
            raise ValueError(f"outbox {edge}: capacity must be at least 1, got {capacity}")
        self.run, self.edge, self.capacity, self.incarnation = run, edge, capacity, incarnation
        self.version = version
        self.received = -1
        self.durable = -1
        self.oldest_trainable = 0
        self.num_bytes = 0
        self._most_waiting = 0
        self._kept: deque[tuple[int, Packet]] = deque()
        self._next_sequence = 0
        self._cursor = 0
        self._session: Session = (-1, -1)
        self._closed = False
        self._changed = threading.Condition()

    @property
    def num_sent(self) -> int:
        """Sequence numbers given out so far."""
        return self._next_sequence

    @property
    def num_waiting(self) -> int:
        """Messages that the consumer's program has not received yet."""
        return self._next_sequence - 1 - self.received

    def most_waiting(self) -> int:
        """Return the most messages that waited at a time since this was last asked."""
        with self._changed:
            most, self._most_waiting = self._most_waiting, self.num_waiting
        return most

    def put(self, message: Message, wait_s: float = 0.0) -> bool:
        """Add a message under the next sequence number; False if there was no room within `wait_s`."""
        with self._changed:
            if self._closed:
                raise EdgeError(f"edge {self.edge}: sent message {message.batch_id} after the end")
            if not self._changed.wait_for(lambda: self.num_waiting < self.capacity, wait_s):
                return False
            sequence = self._next_sequence
        # Packing reads the whole payload, so it is done outside the lock; only one thread puts.
        packet = pack(replace(message, sequence=sequence, incarnation=self.incarnation), run=self.run, edge=self.edge)
        with self._changed:
            self._kept.append((sequence, packet))
            self._next_sequence += 1
            self._most_waiting = max(self._most_waiting, self.num_waiting)
            self.num_bytes += packet.num_bytes
            self._changed.notify_all()
        return True

    def wait_trainable(self, version: int, wait_s: float) -> bool:
        """Wait until the consumer will not start training on messages below `version`; False if it still may."""
        with self._changed:
            return self._changed.wait_for(lambda: self.oldest_trainable >= version, wait_s)

    @property
    def has_stopped(self) -> bool:
        """Whether the consumer needs no further training message."""
        return self.oldest_trainable >= STOPPED

    def resize(self, capacity: int) -> None:
        """Let more or fewer messages wait from now on; none that waits already is lost."""
        with self._changed:
            self.capacity = capacity
            self._changed.notify_all()

    def close(self) -> None:
        """Promise that nothing follows; what is stored can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, take: Take) -> Reply:
        """Answer a consumer: at most `limit` further messages, waiting at most 1 s for the first.

        Raises:
            SessionRefused: the consumer is an older life or has opened a newer session itself.
            EdgeError: the consumer claims messages that it was never handed, or that are gone.
        """
        with self._changed:
            self._open(take)
            self._acknowledge(take)
            if take.limit == 0:
                return Reply(take.session, (), self._cursor, self.version(), self._end)
            self._changed.wait_for(
                lambda: self._cursor < self._next_sequence or self._closed or take.session < self._session,
                min(take.wait_s, MAX_WAIT_S),
            )
            if take.session < self._session:
                raise SessionRefused(f"edge {self.edge}: session {take.session} ended, {self._session} is served")
            first = self._kept[0][0] if self._kept else self._next_sequence
            start = self._cursor - first
            stop = min(start + take.limit, len(self._kept))
            packets = tuple(self._kept[i][1] for i in range(start, stop))
            self._cursor += len(packets)
            return Reply(take.session, packets, self._cursor, self.version(), self._end)

    @property
    def _end(self) -> int | None:
        return self._next_sequence if self._closed else None

    def _open(self, take: Take) -> None:
        if take.edge != self.edge:
            raise EdgeError(f"edge {self.edge}: got a take for edge {take.edge!r}")
        if take.session < self._session:
            raise SessionRefused(f"edge {self.edge}: session {take.session} is over, {self._session} is served")
        if take.session == self._session:
            return
        first = self._kept[0][0] if self._kept else self._next_sequence
        if not first <= take.received + 1 <= self._next_sequence:
            raise EdgeError(
                f"edge {self.edge}: session {take.session} asks for message {take.received + 1}, "
                f"kept are {first} to {self._next_sequence - 1}"
            )
        self._session = take.session
        self._cursor = take.received + 1
        self.received = take.received

    def _acknowledge(self, take: Take) -> None:
        if take.received >= self._cursor:
            raise EdgeError(
                f"edge {self.edge}: message {take.received} is acknowledged, {self._cursor} were handed out"
            )
        self.received = max(self.received, take.received)
        self.durable = max(self.durable, take.durable)
        self.oldest_trainable = max(self.oldest_trainable, take.oldest_trainable)
        covered = min(self.received, self.durable)
        while self._kept and self._kept[0][0] <= covered:
            self._kept.popleft()
        self._changed.notify_all()
