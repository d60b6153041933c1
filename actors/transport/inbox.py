"""The consumer's end of an edge: keeps takes outstanding and hands messages over in order.

Overlapping replies may come in any order; a duplicate is dropped, a gap or a corrupt message opens
a new session, which makes the producer send again from the first message that was not received.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from actors.errors import CorruptMessage, EdgeError, LostReply
from actors.messages import Message
from actors.transport.outbox import MAX_WAIT_S, STOPPED, Reply, Session, Take
from actors.transport.parcel import Arrived

MAX_CORRUPT = 8
"""Corrupt copies of one message before the edge gives up: a wire that never delivers it is broken."""


LOOK_EVERY_S = 0.02
"""How long a consumer of several edges waits on one of them before it looks at the others."""


class Port(Protocol):
    """A consumer's line to the producer of one edge; calls may overlap."""

    def request(self, take: Take) -> None:
        """Start a call of the producer's `take`; never waits."""
        ...

    def collect(self, wait_s: float) -> list[tuple[Take, Reply | Exception]]:
        """Return the calls that ended, waiting up to `wait_s` for the first; empty if none did."""
        ...


def first_message(inboxes: Sequence[Inbox], wait_s: float, *, may_end: bool = False) -> tuple[str, Message] | None:
    """Return the next message of the first inbox that has one, with its edge; None if none came within `wait_s`.

    An inbox whose edge has ended is passed over if there are others, or if it `may_end`.
    """
    may_end = may_end or len(inboxes) > 1
    several = [inbox for inbox in inboxes if not may_end or not inbox.is_closed]
    until = time.monotonic() + wait_s
    while several:
        for inbox in several:
            left = max(0.0, until - time.monotonic()) if inbox is several[-1] else 0.0
            message = inbox.get(min(left, LOOK_EVERY_S) if len(several) > 1 else left, may_end=may_end)
            if message is not None:
                return inbox.edge, message
        if time.monotonic() >= until:
            return None
    return None


class Inbox:
    """Ordered receiver of one edge.

    Args:
        run, edge: names checked in every header.
        port: line to the producer; None: none yet, see `reconnect`.
        window: takes kept outstanding while little has arrived.
        limit: most messages in one reply.
        incarnation: which life of the consumer this is.
        gap_s: how long a missing sequence number may stay missing before a new session asks again.
        retains: True if acknowledged messages must stay with the producer until `durable` covers them.
        entrance: brings a message to where the program computes, in a thread beside it, as soon as the one before has
            been handed over; returns a call that waits for it. None: they may stay where they arrive.
    """

    def __init__(
        self,
        run: str,
        edge: str,
        port: Port | None,
        *,
        window: int = 1,
        limit: int = 4,
        incarnation: int = 0,
        gap_s: float = 5.0,
        retains: bool = False,
        entrance: Callable[[Message], Callable[[], Message]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run, self.edge, self.port = run, edge, port
        self.entrance = entrance
        self.window, self.limit = window, limit
        self.gap_s, self.retains, self.clock = gap_s, retains, clock
        self.received = -1
        self.durable = -1
        self.oldest_trainable = 0
        self.producer_version = 0
        self.promised: int | None = None
        """Version below which no life of this consumer starts training, as its producer knows; None: not heard yet."""
        self.num_sessions = 0
        self.num_duplicates = 0
        self.num_lost = 0
        """Messages that no life of the producer will send: only of a producer that is lossy."""
        self.num_bytes = 0
        self._next_port: Port | None = None
        self._line_changed = threading.Condition()
        self._session: Session = (incarnation, 0)
        self._acknowledged = self._told_durable = -1
        self._outstanding = 0
        self._arrived: dict[int, Arrived] = {}
        self._staged: tuple[int, Future[Callable[[], Message]]] | None = None
        """The next message, which is being opened and brought to its device beside the program."""
        self._stager = None if entrance is None else ThreadPoolExecutor(1, f"{edge} entrance")
        self._gap_since: float | None = None
        self._handed = 0
        self._end: int | None = None
        self._num_corrupt = 0
        self._corrupt: CorruptMessage | None = None

    @property
    def num_buffered(self) -> int:
        """Messages that arrived and wait for the program; another life of the producer sends them again."""
        return 0 if self._next_port is not None else len(self._arrived)

    @property
    def num_handed(self) -> int:
        """Messages that the program has been handed, in all lives."""
        return self.received + 1 - self.num_lost

    @property
    def is_closed(self) -> bool:
        """Whether the producer's last message has been handed over."""
        return self._end is not None and self.received == self._end - 1

    @property
    def _all_handed(self) -> bool:
        return self._end is not None and self._handed >= self._end

    def get(self, wait_s: float, *, may_end: bool = False) -> Message | None:
        """Return the next message in order, or None if it did not come within `wait_s` seconds.

        Raises:
            EdgeError: the edge is closed and nothing is left, unless it `may_end`; or the producer refused.
        """
        self._ask()
        self._say_durable()
        if self.received + 1 not in self._arrived:
            self._acknowledge(self.limit)
            self._collect(wait_s)
        else:
            self._collect(0.0)
        message = None if may_end and self.is_closed else self._pop()
        if message is None:
            self._acknowledge(1)
        self._ask()
        return message

    def hear(self, wait_s: float) -> bool:
        """Wait until the producer has answered once, without handing anything over; False if it did not in time."""
        self._ask()
        if self.promised is None:
            self._collect(wait_s)
        return self.promised is not None

    def say_received(self) -> None:
        """Let a producer that was restored, too, know what it need not keep, before the program looks at the edge."""
        if self.port is not None:
            self.port.request(self._take(0))

    def reconnect(self, port: Port) -> None:
        """Go on with another life of the producer, from the next message that was not received.

        May be called from any thread; takes effect when the program asks next. The producer learns at once what it
        need not keep, since it may wait for room on this edge before the program looks at it.
        """
        with self._line_changed:
            incarnation, counter = self._session
            port.request(replace(self._take(0), session=(incarnation, counter + 1)))
            self._next_port = port
            self._line_changed.notify_all()

    @property
    def is_connected(self) -> bool:
        """Whether there is a producer that answers, as far as is known."""
        return self.port is not None or self._next_port is not None

    def _pop(self) -> Message | None:
        arrived = self._arrived.get(self.received + 1)
        if arrived is None:
            self._watch_gap()
            if self.is_closed:
                raise EdgeError(f"edge {self.edge}: closed after message {self.received}, another was expected")
            return None
        try:
            message = self._entered(self.received + 1, arrived)
            if message.sequence != self.received + 1:
                raise CorruptMessage(f"edge {self.edge}: message {message.sequence} came as {self.received + 1}")
        except CorruptMessage as error:
            self._corrupt = error
            self._open_session()
            return None
        del self._arrived[message.sequence]
        self.received = message.sequence
        self._gap_since, self._num_corrupt = None, 0
        self.num_bytes += arrived.packet.num_bytes
        self._stage_next()
        return message

    def _entered(self, sequence: int, arrived: Arrived) -> Message:
        staged, self._staged = self._staged, None
        if staged is not None and staged[0] == sequence:
            return staged[1].result()()
        message = arrived.opened(self.run, self.edge)
        return message if self.entrance is None else self.entrance(message)()

    def _stage_next(self) -> None:
        """Begin to open what the program will ask for next, if it is there, while the program computes."""
        following = self._arrived.get(self.received + 1)
        if self.entrance is not None and self._stager is not None and following is not None:
            self._staged = self.received + 1, self._stager.submit(self._stage, self.entrance, following)

    def _stage(self, entrance: Callable[[Message], Callable[[], Message]], arrived: Arrived) -> Callable[[], Message]:
        return entrance(arrived.opened(self.run, self.edge))

    def tell(self, oldest_trainable: int) -> None:
        """Promise at once never to start training on messages of a lower version; a promise is never taken back."""
        if oldest_trainable > self.oldest_trainable:
            self.oldest_trainable = oldest_trainable
            if self.port is not None:
                self.port.request(self._take(0))

    def _ask(self) -> None:
        if self._next_port is not None:
            with self._line_changed:
                self.port, self._next_port = self._next_port, None
            self._open_session()
        if self.port is None:
            return
        while self._outstanding < self.window and self._is_due and not self._all_handed:
            self.port.request(self._take(self.limit))
            self._outstanding += 1

    @property
    def _is_due(self) -> bool:
        """Whether to ask: what has arrived lasts about as long as a call, or half of what may wait is not acknowledged.

        Calls that are put off bring more messages each.
        """
        is_low = len(self._arrived) <= self.limit // 4 or self.received + 1 not in self._arrived
        return is_low or self.received - self._acknowledged >= self.limit // 2

    def _acknowledge(self, at_least: int) -> None:
        """Tell what was received since the takes that are still out, if that is as much as this.

        In the usual course they acknowledge all but what the outbox has room beside. A buffer that shrank, or a
        backlog that was kept for a restart, may hold nothing else.
        """
        if self.port is not None and self.received - self._acknowledged >= at_least:
            self.port.request(self._take(0))

    def _say_durable(self) -> None:
        """Let the producer forget at once what a checkpoint covers: it keeps no more than its share meanwhile."""
        if self.retains and self.port is not None and self.durable > self._told_durable:
            self.port.request(self._take(0))

    def _take(self, limit: int) -> Take:
        self._acknowledged = self.received
        durable = self._told_durable = self.durable if self.retains else self.received
        return Take(
            self.edge, self._session, self.received, durable, self.oldest_trainable, limit, MAX_WAIT_S if limit else 0.0
        )

    def _collect(self, wait_s: float) -> None:
        if self.port is None:
            with self._line_changed:
                self._line_changed.wait_for(lambda: self._next_port is not None, wait_s)
            return
        for take, reply in self.port.collect(wait_s):
            if take.session != self._session:
                continue  # an answer to a session that this inbox has left
            self._outstanding -= take.limit > 0
            if isinstance(reply, ConnectionError):
                self.port = None  # whoever started the producer replaces it, and reconnects
                return
            if isinstance(reply, LostReply):
                self._open_session()  # whoever is dead will not answer that either
                return
            if isinstance(reply, Exception):
                raise reply
            self._accept(reply)

    def _accept(self, reply: Reply) -> None:
        if reply.first > self.received + 1:
            self.num_lost += reply.first - self.received - 1
            self.received = reply.first - 1
        self.producer_version = max(self.producer_version, reply.version)
        self.promised = max(self.promised or 0, reply.promised if reply.promised < STOPPED else 0)
        self._handed = max(self._handed, reply.handed)
        if reply.end is not None:
            self._end = reply.end
        for packet in reply.packets:
            try:
                arrived = Arrived.read(packet, self.edge)
            except CorruptMessage as error:
                self._corrupt = error
                continue  # now missing: the gap is noticed and asked for again
            if arrived.sequence <= self.received or arrived.sequence in self._arrived:
                self.num_duplicates += 1
            else:
                self._arrived[arrived.sequence] = arrived

    def _watch_gap(self) -> None:
        if self._handed <= self.received + 1:
            self._gap_since = None
        elif self._outstanding == 0:
            self._open_session()  # no reply is on its way that could bring it
        elif self._gap_since is None:
            self._gap_since = self.clock()
        elif self.clock() - self._gap_since >= self.gap_s:
            self._open_session()

    def _open_session(self) -> None:
        """Leave every outstanding call behind and ask again from the first message not received.

        Raises:
            CorruptMessage: this message came corrupt in `MAX_CORRUPT` sessions.
        """
        if self._corrupt is not None:
            self._num_corrupt += 1
            if self._num_corrupt >= MAX_CORRUPT:
                raise self._corrupt
            self._corrupt = None
        incarnation, counter = self._session
        self._session = (incarnation, counter + 1)
        self._outstanding = 0
        self._arrived.clear()
        self._staged = None
        self._gap_since, self._handed = None, 0
        self.num_sessions += 1

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """Return how far the program has received."""
        return {"received": self.received, "oldest_trainable": self.oldest_trainable, "lost": self.num_lost}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as the life that `state` is of; what it had received when its snapshot was taken is durable."""
        self.received = self.durable = self._acknowledged = state["received"]
        self.oldest_trainable, self.num_lost = state["oldest_trainable"], state["lost"]
