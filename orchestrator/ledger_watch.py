"""Finds edges whose messages don't add up while a run goes on. Pure.

Reports of two actors are taken at different moments, so their counts can't simply be subtracted. What can be
compared:

- Every consumer checks its own books between two steps (`actors/books.py`); that is exact at every position.
- Counts only rise. What a consumer had in one look, its producer has sent by the next; and what a producer knew
  to be received in one look, its consumer has by the next.

At the end of a run nothing moves any more, and the whole account of an edge is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.ledger import edge_ledger
from orchestrator.wiring import Edge

Reports = Mapping[str, Mapping[str, Any]]


class LedgerWatch:
    """Tells of every edge once, the first time that it does not add up.

    Args:
        edges: the edges of the run.
    """

    def __init__(self, edges: Sequence[Edge]) -> None:
        self._edges = edges
        self._told: set[str] = set()
        self._before: Reports = {}

    def look(self, reports: Reports) -> list[dict[str, Any]]:
        """Return what is wrong by these reports and those of the last look: `edge`, `reason`, `position`."""
        before, self._before = self._before, reports
        return self._new(reports, lambda edge: _own_books(edge, reports) or _between(edge, before, reports))

    def close(self, facts: Reports) -> list[dict[str, Any]]:
        """Return what is wrong by the actors' last facts, after which nothing moves."""
        return self._new(facts, lambda edge: _own_books(edge, facts) or _whole(edge, facts))

    def _new(self, reports: Reports, check: Callable[[Edge], dict[str, Any] | None]) -> list[dict[str, Any]]:
        found = []
        for edge in self._edges:
            if edge.name in self._told or edge.producer not in reports or edge.consumer not in reports:
                continue
            if wrong := check(edge):
                self._told.add(edge.name)
                found.append({"edge": edge.name, **wrong})
        return found


def _own_books(edge: Edge, reports: Reports) -> dict[str, Any] | None:
    """What the consumer itself has found."""
    wrong = reports[edge.consumer]["receives"][edge.name]["imbalance"]
    if wrong is None:
        return None
    dropped = sum(wrong["dropped"].values())
    mislaid = wrong["received"] - wrong["trained"] - wrong["held"] - dropped
    return {
        "position": wrong["position"],
        "reason": (
            f"edge {edge.name}: at version {wrong['position']} {edge.consumer} had been handed {wrong['received']} "
            f"messages, {wrong['trained']} trained, {wrong['held']} buffered, {dropped} dropped, {mislaid} mislaid; "
            f"that does not add up"
        ),
    }


def _between(edge: Edge, before: Reports, now: Reports) -> dict[str, Any] | None:
    """What two looks at both ends can't both say."""
    if not all(_is_same_life(before.get(name), now[name]) for name in (edge.producer, edge.consumer)):
        return None
    sent, got = now[edge.producer]["sends"][edge.name], now[edge.consumer]["receives"][edge.name]
    sent_before, got_before = before[edge.producer]["sends"][edge.name], before[edge.consumer]["receives"][edge.name]
    if got["sessions"] != got_before["sessions"]:
        return None  # what had arrived is sent again
    had, known = got_before["received"] + got_before["arrived"], sent_before["sent"] - sent_before["unreceived"]
    if had > sent["sent"]:
        wrong = f"{edge.consumer} had {had} messages when {edge.producer} had not sent more than {sent['sent']}"
    elif known > got["received"]:
        wrong = f"{edge.producer} knew of {known} received messages, {edge.consumer} of {got['received']} later"
    else:
        return None
    return {
        "position": now[edge.consumer]["version"], "reason": f"edge {edge.name}: {wrong}; that does not add up"
    }  # fmt: skip


def _is_same_life(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """Another process or incarnation may begin to count anew."""
    return before is not None and all(before[key] == now[key] for key in ("pid", "incarnation"))


def _whole(edge: Edge, facts: Reports) -> dict[str, Any] | None:
    ledger = edge_ledger(facts[edge.producer]["sends"][edge.name], facts[edge.consumer]["receives"][edge.name])
    reason = ledger.imbalance(edge.name)
    return None if reason is None else {"position": facts[edge.consumer]["version"], "reason": reason}
