"""Turns what the rules declare into edges. Pure: it reads `Needs` and never asks a rule's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.edges import BlockEdges, LateInput, SourceEdges
from actors.needs import Feedback, Needs, feedback_delay

SOURCE = "source"


@dataclass(frozen=True)
class Edge:
    """A directed FIFO connection between two actors."""

    name: str
    producer: str
    consumer: str


@dataclass(frozen=True)
class Wiring:
    """All edges of a run, and each actor's view of them."""

    edges: tuple[Edge, ...]
    source: SourceEdges
    blocks: tuple[BlockEdges, ...]

    def incoming(self, actor: str) -> list[Edge]:
        """Return the edges that end at an actor."""
        return [edge for edge in self.edges if edge.consumer == actor]


def block_name(index: int) -> str:
    """Return the name of the block with this index."""
    return f"block{index}"


def wire(needs: Sequence[Needs], *, schedule: str, delay_per_hop: float = 0.0) -> Wiring:
    """Return the wiring of a chain.

    Args:
        needs: one declaration per block, first to last.
        schedule: `pipeline` or `lockstep`; under lockstep every block tells the source what it finished.
        delay_per_hop: s of D = 1 + floor(s * hops).
    """
    names = [block_name(index) for index in range(len(needs))]
    forward = [
        Edge(f"{producer}->{consumer}", producer, consumer)
        for producer, consumer in zip([SOURCE, *names], names, strict=False)
    ]
    feedback = {
        (index, origin): _feedback_edge(need.feedback, index, origin)
        for index, need in enumerate(needs)
        if need.feedback is not Feedback.NONE
        for origin in need.origins
    }
    done = [Edge(f"{name}->{SOURCE}:done", name, SOURCE) for name in names] if schedule == "lockstep" else []
    blocks = tuple(
        BlockEdges(
            driver=forward[index].name,
            up=forward[index + 1].name if index + 1 < len(names) else None,
            late=tuple(
                LateInput(feedback[index, origin].name, origin, feedback_delay(origin - index, delay_per_hop))
                for origin in need.origins
                if (index, origin) in feedback
            ),
            down=_down(feedback, names[index]),
            done=done[index].name if done else None,
        )
        for index, need in enumerate(needs)
    )
    return Wiring(
        edges=(*forward, *feedback.values(), *done),
        source=SourceEdges(up=(forward[0].name,), done=tuple(edge.name for edge in done)),
        blocks=blocks,
    )


def _feedback_edge(kind: Feedback, index: int, origin: int) -> Edge:
    """The edge on which feedback of `origin` reaches block `index`."""
    sender = index + 1 if kind is Feedback.NEXT_BLOCK else origin
    producer, consumer = block_name(sender), block_name(index)
    return Edge(f"{producer}->{consumer}:feedback{origin}", producer, consumer)


def _down(feedback: dict[tuple[int, int], Edge], producer: str) -> dict[int, tuple[str, ...]]:
    edges: dict[int, tuple[str, ...]] = {}
    for (_, origin), edge in feedback.items():
        if edge.producer == producer:
            edges[origin] = (*edges.get(origin, ()), edge.name)
    return edges
