"""`buffers.mode: auto` while a run goes on: two reports of an edge's ends become orders to its producer. Pure.

An edge is judged once per set of reports, but not before it has passed on `FILLS` times what it holds: fewer
messages say more about chance than about the buffer. While nothing moves, as in a pause, nothing is judged.
Edges whose size follows from delays in the wiring (`room`) are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.buffer_sizing import Seen, Size, resized
from orchestrator.config.sections import BuffersSection
from orchestrator.wiring import Edge, Wiring

BUDGET_BYTES = 256 * 1024**2
"""Default of `buffers.budget_bytes`."""
FILLS = 4


@dataclass(frozen=True)
class Mark:
    """What both ends of an edge reported when its interval began; times on their own clocks, in seconds."""

    sent: int
    producer_s: float
    consumer_s: float
    producer_waited_s: float
    consumer_waited_s: float
    most_waiting: int = 0


class AutoBuffers:
    """The sizes of a run's buffers.

    Args:
        wiring: of the run.
    """

    def __init__(self, wiring: Wiring) -> None:
        fixed = {edge for edges in (wiring.source, *wiring.blocks) for edge in edges.room}
        self._edges = [edge for edge in wiring.edges if edge.name not in fixed]
        self._sizes: dict[str, Size] = {}
        self._marks: dict[str, Mark] = {}

    def orders(
        self, buffers: BuffersSection, reports: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, dict[str, dict[str, int]]]:
        """Return what is to be `set` by each producer now: the capacities of its edges that change.

        Args:
            buffers: the settings of the day.
            reports: of actors, by name; an edge waits for those of both its ends.
        """
        if buffers.mode == "fixed":
            self._sizes, self._marks = {}, {}
            return {}
        edges = [edge for edge in self._edges if edge.producer in reports and edge.consumer in reports]
        capacities = {edge.name: reports[edge.producer]["sends"][edge.name]["capacity"] for edge in edges}
        for name, capacity in capacities.items():
            self._sizes[name] = replace(self._sizes.get(name, Size(capacity)), capacity=capacity)
        seen = {edge.name: found for edge in edges if (found := self._seen(edge, reports)) is not None}
        self._sizes = resized(self._sizes, seen, buffers.budget_bytes or BUDGET_BYTES)
        orders: dict[str, dict[str, dict[str, int]]] = {}
        for edge in edges:
            if self._sizes[edge.name].capacity != capacities[edge.name]:
                own = orders.setdefault(edge.producer, {"capacities": {}})
                own["capacities"][edge.name] = self._sizes[edge.name].capacity
        return orders

    def _seen(self, edge: Edge, reports: Mapping[str, Mapping[str, Any]]) -> Seen | None:
        """Return what the edge did since its mark and begin the next interval; None if that is too little to judge."""
        now, mark = _mark(edge, reports), self._marks.get(edge.name)
        sent = reports[edge.producer]["sends"][edge.name]
        if mark is None or not _is_later(now, mark):
            self._marks[edge.name] = now
            return None
        most = max(mark.most_waiting, sent["most_waiting"])
        if now.sent - mark.sent < FILLS * sent["capacity"]:
            self._marks[edge.name] = replace(mark, most_waiting=most)
            return None
        self._marks[edge.name] = now
        return Seen(
            wait_input=(now.consumer_waited_s - mark.consumer_waited_s) / (now.consumer_s - mark.consumer_s),
            wait_output=(now.producer_waited_s - mark.producer_waited_s) / (now.producer_s - mark.producer_s),
            most_waiting=most,
            message_bytes=sent["bytes"] / sent["sent"],
        )


def _mark(edge: Edge, reports: Mapping[str, Mapping[str, Any]]) -> Mark:
    producer, consumer = reports[edge.producer], reports[edge.consumer]
    sent, got = producer["sends"][edge.name], consumer["receives"][edge.name]
    return Mark(
        sent["sent"], producer["clock"]["now_s"], consumer["clock"]["now_s"], sent["waited_s"], got["waited_s"]
    )  # fmt: skip


def _is_later(now: Mark, mark: Mark) -> bool:
    """Whether both are of the same lives: a new process begins to count anew."""
    return (
        now.sent >= mark.sent
        and now.producer_s > mark.producer_s
        and now.consumer_s > mark.consumer_s
        and now.producer_waited_s >= mark.producer_waited_s
        and now.consumer_waited_s >= mark.consumer_waited_s
    )
