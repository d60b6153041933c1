"""Predicts how fast a chain works, from what its steps cost: the real programs on clocks that are only counted.

Every actor has a clock. A step moves it on by its cost; `Receive` moves it to the time at which the message
arrives, `Send` to the time at which the edge has room, and the message arrives `message_s` later. Programs
read at fixed places, so they form a Kahn network: these times follow from the costs alone, in whatever
order the actors are advanced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, cast

import torch

from actors.datasets.batches import Batch as DataBatch
from actors.datasets.batches import TrainBatches
from actors.edge_ends import edge_capacities
from actors.edges import EdgeSettings
from actors.learning_rule import LearningRule
from actors.messages import Message
from actors.needs import Needs, Place
from actors.objective import Objective
from actors.plugins import plugin_class
from actors.program import BlockProgram, Program
from actors.source_program import SourceProgram
from actors.spec import PluginSpec
from actors.trace import Span
from orchestrator.timed_block import BATCH_SIZE, NUM_CLASSES, RAW_SHAPE, UNIT, Costs, TimedBlock, timed_spec
from orchestrator.timed_chain import TimedActor, TimedEdge, run_all
from orchestrator.wiring import SOURCE, Wiring, block_name, wire


@dataclass(frozen=True)
class Prediction:
    """What the event model found; seconds.

    `period_s`: time per batch of the last block in the steady state.
    `starts`: when each block started on each batch.
    `shares`: where each block's time goes, filling and draining the chain included.
    `spans`: what each actor did when.
    """

    period_s: float
    starts: Sequence[Sequence[float]]
    shares: Sequence[Mapping[str, float]]
    spans: Mapping[str, Sequence[Span]]


def predict(
    rule: str, settings: Mapping[str, Any] | None = None, *, num_blocks: int,
    objective: str = "cross_entropy", schedule: str = "pipeline", delay_per_hop: float = 0.0, input_delay: int = 1,
    late: str = "stash", costs: Costs | Sequence[Costs] = UNIT, message_s: float = 0.0, capacity: int = 4,
    num_batches: int = 96,
) -> Prediction:  # fmt: skip
    """Return how a chain of blocks with known costs works.

    Args:
        rule: name of a learning rule.
        settings: the rule's own settings.
        num_blocks: in the chain.
        objective: name of the objective, which may need fields of its own.
        schedule: `pipeline` or `lockstep`.
        delay_per_hop: s of D = 1 + floor(s * hops).
        input_delay: E, where the raw input drives the blocks.
        late: `stash` or `recompute`.
        costs: of every block, or one per block.
        message_s: seconds between Send and arrival.
        capacity: messages that may wait on an edge.
        num_batches: to simulate.

    Raises:
        RunError: the chain can't progress with this capacity.
    """
    rule_spec, objective_spec = PluginSpec(rule, None, settings or {}), PluginSpec(objective, None, {})
    needs = needs_of(rule_spec, objective, num_blocks)
    wiring = wire(needs, schedule=schedule, delay_per_hop=delay_per_hop, input_delay=input_delay)
    each = [costs] * num_blocks if isinstance(costs, Costs) else costs
    actors = [TimedActor(block_name(index), num_batches) for index in range(num_blocks)]
    starts: list[list[float]] = [[] for _ in actors]
    for index, actor in enumerate(actors):
        place, edges = Place(index, num_blocks), wiring.blocks[index]
        spec = timed_spec(place, edges, needs[index], rule_spec, objective_spec, late=late)
        actor.program = _program(TimedBlock(spec, each[index], actor.spend), actor, starts[index])
    source = _source(wiring, num_batches)
    with one_thread():
        run_all([source, *actors], _edges(wiring, capacity, message_s))
    return Prediction(
        period_s=period(starts[-1]),
        starts=starts,
        shares=[actor.times.fractions() for actor in actors],
        spans={actor.name: actor.trace.spans for actor in (source, *actors)},
    )


def period(starts: Sequence[float]) -> float:
    """Return the time per batch in the steady state: the median slope over a quarter of all batches, second half.

    A chain may alternate between short and long steps; over many batches that evens out.
    """
    width = max(1, len(starts) // 4)
    later = range(len(starts) // 2, len(starts) - width)
    return median((starts[t + width] - starts[t]) / width for t in later)


class NoBatches:
    """Training batches that cost nothing."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches

    def stream(self, first: int) -> Iterator[DataBatch]:
        inputs, labels = torch.zeros(BATCH_SIZE, *RAW_SHAPE), torch.arange(BATCH_SIZE) % NUM_CLASSES
        return (DataBatch(b, inputs, labels, labels) for b in range(first, self.num_batches))


def _source(wiring: Wiring, num_batches: int) -> TimedActor:
    actor = TimedActor(SOURCE, num_batches)
    batches = cast(TrainBatches, NoBatches(num_batches))
    actor.program = SourceProgram(
        batches, {}, wiring.source, actor.times, evaluate_every=None, stop_asked=lambda: False
    ).run()
    return actor


def needs_of(spec: PluginSpec, objective: str, num_blocks: int) -> list[Needs]:
    """What the rule and the objective declare together, block by block."""
    rule = cast(type[LearningRule], plugin_class("rule", name=spec.name, factory=None))
    fields = cast(type[Objective], plugin_class("objective", name=objective, factory=None)).fields
    config = rule.Config(**spec.settings)
    found = [rule.needs(config, Place(index, num_blocks)) for index in range(num_blocks)]
    return [replace(need, fields=need.fields | (fields if need.objective else frozenset())) for need in found]


def _program(block: TimedBlock, actor: TimedActor, starts: list[float]) -> Program:
    edges = block.spec.edges

    def trained(message: Message, edge: str) -> None:
        if edge == edges.driver:
            starts.append(actor.clock)

    return BlockProgram(
        block, edges, actor.times,
        snapshot=lambda position, orders: None, report=lambda evaluation: None, trained=trained,
    ).run()  # fmt: skip


def _edges(wiring: Wiring, capacity: int, message_s: float) -> dict[str, TimedEdge]:
    """Every edge, as large as the actors make it."""
    settings = EdgeSettings(capacity=capacity, limit=capacity)
    room = {name: held for edges in (wiring.source, *wiring.blocks) for name, held in edges.room.items()}
    sizes = edge_capacities([edge.name for edge in wiring.edges], settings, room)
    return {name: TimedEdge(size, message_s) for name, size in sizes.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Tensors of a few numbers are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
