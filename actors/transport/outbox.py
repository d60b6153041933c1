"""The producer's end of an edge: a bounded, numbered store from which the consumer takes.

A message stays until the consumer's program has received it and, where snapshots protect it, until
a committed checkpoint covers it (`durable`). A full outbox makes its producer wait: that is all of
our back-pressure. Sessions fence consumers of an older life; a newer session rewinds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.errors import EdgeError, SessionRefused
from actors.messages import Kind, Message, from_plain, to_plain
from actors.transport.codec import PLAIN, WireError
from actors.transport.packet import CODED_KINDS, Packet, opened, unpack
from actors.transport.parcel import Parcel, Put
from actors.transport.staging import STAGED_BYTES

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
    `first`: the lowest one of this session.
    `end`: how many messages the edge carries in all, once the producer knows it.
    `promised`: the largest `oldest_trainable` that it was told, by earlier lives of the consumer too.
    """

    session: Session
    packets: tuple[Packet, ...]
    handed: int
    version: int
    end: int | None
    first: int = 0
    promised: int = 0

    def opened(self, edge: str) -> Reply:
        """Return it with its packets opened, in a thread that receives it while the program computes."""
        return replace(self, packets=tuple(opened(packet, edge) for packet in self.packets))


class Outbox:
    """Bounded FIFO of one edge, for one consumer; safe to call from several threads.

    Args:
        run: name of the run, written into every header.
        edge: name of the edge.
        capacity: messages that may wait here, not yet received by the consumer.
        incarnation: which life of the producer this is.
        version: returns the producer's current version, sent with every reply.
        keep: newest training messages that stay whatever was received: a consumer whose program handles them
            that much later needs them again if both ends return to a position.
        repeats: this life makes again what an earlier one has made after the position that it was restored at.
            What the consumer has already is not kept.
        is_lossy: this life does not make the same messages again: its numbers go on after the consumer's.
        codec: what activations and feedback travel as.
    """

    def __init__(
        self,
        run: str,
        edge: str,
        capacity: int,
        *,
        incarnation: int = 0,
        version: Callable[[], int] = int,
        keep: int = 0,
        repeats: bool = False,
        is_lossy: bool = False,
        codec: str = PLAIN,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"outbox {edge}: capacity must be at least 1, got {capacity}")
        self.run, self.edge, self.capacity, self.incarnation = run, edge, capacity, incarnation
        self.version = version
        self.repeats, self.is_lossy = repeats, is_lossy
        self.received = -1
        self.durable = -1
        self.oldest_trainable = 0
        self.num_bytes = 0
        self.wire_error = WireError(codec)
        self._most_waiting = 0
        self._kept: deque[tuple[int, Parcel]] = deque()
        self._recent: deque[int] = deque(maxlen=keep)
        self._next_sequence = 0
        self._cursor = 0
        self._session: Session = (-1, -1)
        self._session_first = 0
        self._closed = False
        self._leaves = False
        """Whether a consumer of another process has asked."""
        lock = threading.RLock()
        self._changed, self._filled = threading.Condition(lock), threading.Condition(lock)
        """What the producer waits for, and the consumer's takes; a message wakes one of these only."""

    @property
    def num_sent(self) -> int:
        """Sequence numbers given out so far, by earlier lives too as far as the consumer knows them."""
        return max(self._next_sequence, self._cursor)

    @property
    def num_waiting(self) -> int:
        """Messages that the consumer's program has not received yet."""
        return max(0, self._next_sequence - 1 - self.received)

    @property
    def kept_bytes(self) -> int:
        """Payload bytes that are stored here, received or not."""
        with self._changed:
            return sum(parcel.num_bytes for _, parcel in self._kept)

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
        parcel = self._parcel(message, sequence)  # outside the lock; only one thread puts
        if message.kind in CODED_KINDS:
            self.wire_error.look(sequence, message.tensors)
        with self._changed:
            if sequence != self._next_sequence:  # a new session has moved it meanwhile
                sequence = self._next_sequence
                parcel = self._parcel(message, sequence)
            self._store(sequence, message.kind, parcel)
            self._next_sequence += 1
            self._most_waiting = max(self._most_waiting, self.num_waiting)
            self.num_bytes += parcel.num_bytes
            self._free()
            self._filled.notify()
        return True

    def _parcel(self, message: Message, sequence: int) -> Parcel:
        sent = message.numbered(sequence, self.incarnation)
        return Parcel(sent, run=self.run, edge=self.edge, codec=self.wire_error.codec, leaves=self._leaves)

    def _store(self, sequence: int, kind: Kind, parcel: Parcel) -> None:
        self._kept.append((sequence, parcel))
        if kind in (Kind.ACTIVATION, Kind.FEEDBACK, Kind.DONE):
            self._recent.append(sequence)

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
            self._filled.notify_all()

    def take(self, take: Take) -> Reply:
        """Answer a consumer: at most `limit` further messages, waiting at most 1 s for the first.

        Raises:
            SessionRefused: the consumer is an older life or has opened a newer session itself.
            EdgeError: the consumer claims messages that it was never handed, or that are gone.
        """
        self._leaves = True
        parcels, facts = self._answer(take)
        return Reply(take.session, tuple(parcel.packet() for parcel in parcels), *facts)  # read without the lock

    def take_here(self, take: Take) -> Reply:
        """Answer a consumer in this process as `take` does; what lies on a device stays there."""
        parcels, facts = self._answer(take)
        return Reply(take.session, tuple(parcel.handed() for parcel in parcels), *facts)

    def take_referred(self, take: Take, put: Put, above: int = STAGED_BYTES) -> Reply:
        """Answer a consumer as `take` does; tensors of more than `above` bytes stay here, where it fetches them."""
        parcels, facts = self._answer(take)
        return Reply(take.session, tuple(parcel.referred(put, above) for parcel in parcels), *facts)

    def _answer(self, take: Take) -> tuple[Sequence[Parcel], tuple[Any, ...]]:
        """Return what is handed out, and the other fields of the reply."""
        with self._changed:
            self._open(take)
            self._acknowledge(take)
            if take.limit == 0:
                return (), self._facts
            self._filled.wait_for(
                lambda: self._cursor < self._next_sequence or self._closed or take.session < self._session,
                min(take.wait_s, MAX_WAIT_S),
            )
            if take.session < self._session:
                raise SessionRefused(f"edge {self.edge}: session {take.session} ended, {self._session} is served")
            start = self._cursor - self._first
            stop = min(start + take.limit, len(self._kept))
            parcels = [self._kept[i][1] for i in range(start, stop)]
            self._cursor += len(parcels)
            return parcels, self._facts

    @property
    def _facts(self) -> tuple[Any, ...]:
        """What a reply says besides its session and packets, in the order of its fields."""
        return (self._cursor, self.version(), self._end, self._session_first, self.oldest_trainable)

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
        if self.is_lossy:
            self._go_on_after(take.received)
        first, wanted = self._first, take.received + 1
        if not self.is_lossy and (wanted < first or (wanted > self._next_sequence and not self.repeats)):
            raise EdgeError(
                f"edge {self.edge}: session {take.session} asks for message {wanted}, "
                f"kept are {first} to {self._next_sequence - 1}"
            )
        self._session = take.session
        self._filled.notify_all()
        self._cursor = self._session_first = max(wanted, first) if self.is_lossy else wanted
        self.received = take.received

    def _go_on_after(self, received: int) -> None:
        """Leave out what one end has lost: numbers that died with the producer, or with the consumer."""
        if received >= self._next_sequence:
            self._kept.clear()
            self._next_sequence = received + 1

    @property
    def _first(self) -> int:
        return self._kept[0][0] if self._kept else self._next_sequence

    def _acknowledge(self, take: Take) -> None:
        if take.received >= self._cursor and self.repeats:
            self._cursor = take.received + 1  # from the life before
        if take.received >= self._cursor:
            raise EdgeError(
                f"edge {self.edge}: message {take.received} is acknowledged, {self._cursor} were handed out"
            )
        self.received = max(self.received, take.received)
        self.durable = max(self.durable, take.durable)
        self.oldest_trainable = max(self.oldest_trainable, take.oldest_trainable)
        self._free()
        self._changed.notify_all()

    def _free(self) -> None:
        covered = min(self.received, self.durable)
        if self._recent:
            covered = min(covered, self._recent[0] - 1)
        while self._kept and self._kept[0][0] <= covered:
            self._kept.popleft()

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """Return how far the edge is, and the newest `keep` training messages with all that lies between them."""
        with self._changed:
            since = self._recent[0] if self._recent else self._next_sequence
            kept = [parcel.packet() for sequence, parcel in self._kept if sequence >= since]
            facts = {"sent": self._next_sequence, "bytes": self.num_bytes}
        return facts | {"kept": [to_plain(unpack(packet, run=self.run, edge=self.edge)) for packet in kept]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as the life that `state` is of."""
        for plain in state["kept"]:
            message = from_plain(plain)
            self._store(message.sequence, message.kind, self._parcel(message, message.sequence))
        self._next_sequence, self.num_bytes = state["sent"], state["bytes"]
