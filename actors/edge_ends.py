"""The ends of an actor's edges: inboxes, outboxes, and what of them belongs to a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.edges import EdgeSettings
from actors.transport.codec import PLAIN
from actors.transport.inbox import Inbox, Port
from actors.transport.outbox import Outbox
from actors.transport.staging import entrance_to

MOST_POSITIONS = 64
"""Snapshots whose positions on the edges are remembered until they are committed."""


@dataclass(frozen=True)
class Life:
    """Which life of an actor this is.

    Args:
        incarnation: fences what earlier lives left behind.
        repeats: this life goes on from a snapshot, or begins again, and makes the same messages once more.
        is_lossy: it does not make the same messages, since its program depends on timing.
    """

    incarnation: int = 0
    repeats: bool = False
    is_lossy: bool = False


class EdgeEnds:
    """All edges of one actor.

    Args:
        run: name of the run.
        outgoing: names of the edges it produces.
        settings: sizes of its edges.
        life: which life of the actor this is.
        version: returns its version.
        room: messages that an edge must hold besides those that its consumer has read and not yet acknowledged,
            whatever the settings say.
        keep: newest messages of an edge that its consumer may need again.
        state: of a snapshot, to go on from.
        device: where messages are wanted.
    """

    def __init__(
        self, run: str, outgoing: Sequence[str], settings: EdgeSettings, life: Life, version: Callable[[], int],
        *, room: Mapping[str, int], keep: Mapping[str, int], state: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.run, self.settings, self.life, self.room = run, settings, life, room
        self.inboxes: dict[str, Inbox] = {}
        self.outboxes: dict[str, Outbox] = {}
        self._state = state
        self._entrance = entrance_to(device)
        self._received: dict[int, dict[str, int]] = {}
        for edge, capacity in edge_capacities(outgoing, settings, room).items():
            self.outboxes[edge] = Outbox(
                run, edge, capacity, incarnation=life.incarnation, version=version,
                keep=keep.get(edge, 0), repeats=life.repeats and not life.is_lossy,
                is_lossy=life.is_lossy, codec=settings.codecs.get(edge, PLAIN),
            )  # fmt: skip
            if state is not None and edge in state["outboxes"]:
                self.outboxes[edge].restore(state["outboxes"][edge])

    def connect(self, edge: str, port: Port | None) -> Inbox | None:
        """Open the consumer's end of an edge, or give it a line to another life of its producer.

        Returns:
            The inbox, if it is new.
        """
        if edge in self.inboxes:
            if port is not None:
                self.inboxes[edge].reconnect(port)
            return None
        inbox = self.inboxes[edge] = Inbox(
            self.run, edge, port, window=self.settings.window, limit=self.settings.limit,
            incarnation=self.life.incarnation, retains=self.settings.retains,
            entrance=self._entrance,
        )  # fmt: skip
        if self._state is not None and edge in self._state["inboxes"]:
            inbox.restore(self._state["inboxes"][edge])
            inbox.say_received()
        return inbox

    def state(self, position: int) -> dict[str, Any]:
        """Return what of the edges belongs to the snapshot of a position; remembers it until `commit`."""
        self._received[position] = {edge: inbox.received for edge, inbox in self.inboxes.items()}
        while len(self._received) > MOST_POSITIONS:
            del self._received[min(self._received)]
        return {
            "inboxes": {edge: inbox.state() for edge, inbox in self.inboxes.items()},
            "outboxes": {edge: outbox.state() for edge, outbox in self.outboxes.items()},
        }

    def commit(self, position: int) -> None:
        """Let producers forget what a committed checkpoint covers, if this life has taken its snapshot."""
        for edge, received in self._received.get(position, {}).items():
            self.inboxes[edge].durable = received
        self._received = {known: cursors for known, cursors in self._received.items() if known > position}

    @property
    def kept_bytes(self) -> int:
        """Payload bytes in all outboxes."""
        return sum(outbox.kept_bytes for outbox in self.outboxes.values())


def edge_capacities(outgoing: Sequence[str], settings: EdgeSettings, room: Mapping[str, int]) -> dict[str, int]:
    """Return how many messages may wait on each edge.

    A consumer acknowledges late what its calls bring, and a call's worth more.
    """
    late = (settings.window + 1) * settings.limit
    return {edge: late + room[edge] if edge in room else settings.capacity for edge in outgoing}
