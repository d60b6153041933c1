"""The conservation ledger: every message that was sent on an edge is in exactly one state. Pure.

The producer counts sequence numbers given out, the transport what has arrived and been handed over, the
consumer's program what it has done with it. The three are counted apart, so that a message that one of them
mislays shows as an imbalance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ledger:
    """One edge's account.

    Args:
        sent: sequence numbers given out.
        trained: used at least once and gone; also evaluated, passed on, applied as feedback, obeyed.
        buffered: at the consumer, alive.
        in_flight: sent and not at the consumer yet.
        dropped: by reason.
        lost: under way when an actor died whose program does not make the same messages again.
        mislaid: handed to the consumer's program, which can't say what became of it.
    """

    sent: int
    trained: int
    buffered: int
    in_flight: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    lost: int = 0
    mislaid: int = 0

    @property
    def is_balanced(self) -> bool:
        """Whether every message is in exactly one state and none is mislaid."""
        accounted = self.trained + self.buffered + self.in_flight + sum(self.dropped.values()) + self.lost
        return accounted == self.sent and self.mislaid == 0 and min(self.in_flight, self.buffered, self.trained) >= 0

    def imbalance(self, edge: str) -> str | None:
        """Return what does not add up, as one sentence, None if everything does."""
        if self.is_balanced:
            return None
        return (
            f"edge {edge}: {self.sent} messages were sent, {self.trained} trained, {self.buffered} buffered, "
            f"{self.in_flight} in flight, {sum(self.dropped.values())} dropped, {self.lost} lost, "
            f"{self.mislaid} mislaid; that does not add up"
        )


def edge_ledger(sent: Mapping[str, Any], got: Mapping[str, Any]) -> Ledger:
    """Return an edge's account from what its producer and its consumer report.

    Args:
        sent: `sent`.
        got: `received` (handed over by the transport), `arrived` (waits there), and of the program `trained`,
            `held` (alive in its buffer) and `dropped`; `lost` with an actor that died.
    """
    dropped = {reason: count for reason, count in got["dropped"].items() if count}
    lost = got.get("lost", 0)
    known = got["trained"] + got["held"] + sum(dropped.values())
    return Ledger(
        sent=sent["sent"],
        trained=got["trained"],
        buffered=got["arrived"] + got["held"],
        in_flight=sent["sent"] - got["received"] - got["arrived"],
        dropped=dropped,
        lost=lost,
        mislaid=got["received"] - lost - known,
    )


def num_lost(reports: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the messages of all edges that were lost with an actor that died."""
    return sum(edge["lost"] for facts in reports.values() for edge in facts["receives"].values())
