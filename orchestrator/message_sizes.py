"""How large the messages of every edge are: what its ends hold, and how many streams of it the rule makes. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.needs import Feedback
from orchestrator.wiring import SOURCE, Edge, is_forward

if TYPE_CHECKING:
    from orchestrator.plan import Plan

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class SampleBytes:
    """Bytes that one sample takes on an edge, in 32 bits and without its labels; 0: nothing of that kind travels."""

    training: int
    evaluation: int


def sample_bytes(plan: Plan) -> dict[str, SampleBytes]:
    """Return the size of a sample on every edge."""
    return {edge.name: _of(edge, plan) for edge in plan.wiring.edges}


def _of(edge: Edge, plan: Plan) -> SampleBytes:
    if edge.consumer == SOURCE:  # a word that a batch is done
        return SampleBytes(0, 0)
    if edge.producer == SOURCE:
        size = _FLOAT_BYTES * math.prod(plan.shapes[0])
        return SampleBytes(size, size if edge.name in plan.wiring.source.up else 0)
    producer, consumer = (int(end.removeprefix("block")) for end in (edge.producer, edge.consumer))
    size = _FLOAT_BYTES * math.prod(plan.shapes[max(producer, consumer)])
    if not is_forward(edge):
        is_error = plan.needs[consumer].feedback is Feedback.LAST_BLOCK
        return SampleBytes(_FLOAT_BYTES * plan.num_classes if is_error else size, 0)
    training, evaluation = plan.streams
    return SampleBytes(training * size, evaluation * size)
