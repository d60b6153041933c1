"""Turns what the rules declare into edges. Pure: it reads `Needs` and never asks a rule's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from actors.edges import BlockEdges, LateInput, SourceEdges
from actors.needs import Driver, Feedback, Needs, feedback_delay

SOURCE = "source"


@dataclass(frozen=True)
class Edge:
    """A directed FIFO connection between two actors."""

    name: str
    producer: str
    consumer: str


def is_forward(edge: Edge) -> bool:
    """Return whether an edge carries activations from one block to the next."""
    return edge.producer != SOURCE and edge.consumer != SOURCE and ":" not in edge.name


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


def wire(needs: Sequence[Needs], *, schedule: str, delay_per_hop: float = 0.0, input_delay: int = 1) -> Wiring:
    """Return the wiring of a chain.

    Args:
        needs: one declaration per block, first to last.
        schedule: under `lockstep` every block tells the source what it finished.
        delay_per_hop: s of D = 1 + floor(s * hops).
        input_delay: E; where the raw input drives a block, its predecessor's activation t - E is read before t.
    """
    names = [block_name(index) for index in range(len(needs))]
    forward = [
        Edge(f"{producer}->{consumer}", producer, consumer)
        for producer, consumer in zip([SOURCE, *names], names, strict=False)
    ]
    raw = {
        index: Edge(f"{SOURCE}->{names[index]}:raw", SOURCE, names[index])
        for index, need in enumerate(needs)
        if index > 0 and (need.driver is Driver.RAW_INPUT or "raw_input" in need.fields)
    }
    feedback = {
        (index, origin): _feedback_edge(need.feedback, index, origin)
        for index, need in enumerate(needs)
        if need.feedback is not Feedback.NONE
        for origin in need.origins
    }
    done = [Edge(f"{name}->{SOURCE}:done", name, SOURCE) for name in names] if schedule == "lockstep" else []
    blocks = []
    for index, need in enumerate(needs):
        line = forward[index].name
        is_raw = index > 0 and need.driver is Driver.RAW_INPUT
        late = [
            LateInput(feedback[index, origin].name, origin, feedback_delay(origin - index, delay_per_hop))
            for origin in need.origins
            if (index, origin) in feedback
        ]
        blocks.append(
            BlockEdges(
                driver=raw[index].name if is_raw else line,
                up=forward[index + 1].name if index + 1 < len(names) else None,
                late=tuple(late),
                raw=raw[index].name if index in raw else None,
                late_activation=LateInput(line, index - 1, input_delay) if is_raw else None,
                down=_down(feedback, names[index]),
                done=done[index].name if done else None,
            )
        )
    return Wiring(
        edges=(*forward, *raw.values(), *feedback.values(), *done),
        source=SourceEdges(
            up=(forward[0].name,),
            raw=tuple(edge.name for edge in raw.values()),
            done=tuple(edge.name for edge in done),
            room={
                # Block j is j steps and j messages behind block 0, which must not wait for it.
                edge.name: 2 * index
                for index, edge in raw.items()
                if needs[index].driver is Driver.PREDECESSOR
            },
        ),
        blocks=_with_room(blocks, names, tuple(feedback.values()), forward),
    )


def _feedback_edge(kind: Feedback, index: int, origin: int) -> Edge:
    """The edge on which feedback of `origin` reaches block `index`."""
    sender = index + 1 if kind is Feedback.NEXT_BLOCK else origin
    producer, consumer = block_name(sender), block_name(index)
    return Edge(f"{producer}->{consumer}:feedback{origin}", producer, consumer)


def _with_room(
    blocks: Sequence[BlockEdges], names: Sequence[str], feedback: Sequence[Edge], forward: Sequence[Edge]
) -> tuple[BlockEdges, ...]:
    """An edge whose messages are handled D batches late holds D, or both ends would wait for each other for ever."""
    late = [late for block in blocks for late in (*block.late, block.late_activation) if late is not None]
    delays = {each.edge: each.delay for each in late}
    return tuple(
        replace(
            block,
            room={
                edge.name: delays[edge.name]
                for edge in (*feedback, *forward)
                if edge.producer == name and edge.name in delays
            },
        )
        for name, block in zip(names, blocks, strict=True)
    )


def _down(feedback: dict[tuple[int, int], Edge], producer: str) -> dict[int, tuple[str, ...]]:
    edges: dict[int, tuple[str, ...]] = {}
    for (_, origin), edge in feedback.items():
        if edge.producer == producer:
            edges[origin] = (*edges.get(origin, ()), edge.name)
    return edges
