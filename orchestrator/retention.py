"""How many batches may leave before a checkpoint covers them, so that no actor keeps more than its share. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.config import RunConfig
from orchestrator.message_sizes import sample_bytes

if TYPE_CHECKING:
    from orchestrator.plan import Plan

_LABEL_BYTES = 16
"""A sample's labels, on their way up and to others."""
_FEWEST = 2
"""Batches that may leave in any case: one that carries the order and one that follows it."""

_MARGIN = 8
"""One part in so many of the share is for what leaves before every producer has heard of a commit."""


def most_uncovered(config: RunConfig, plan: Plan) -> int:
    """Return how many batches may leave before a checkpoint covers them.

    A block keeps what it has sent up and down, and the batches of an evaluation until the checkpoint after it. An
    evaluation that takes more than half of the share comes on top.
    """
    share, (batch, evaluation) = config.recovery.retention_bytes, _kept_bytes(config, plan)
    room = share - evaluation if 2 * evaluation <= share else share
    return max(_FEWEST, (room - room // _MARGIN) // batch)


def retention_warning(config: RunConfig, plan: Plan) -> str | None:
    """Return what the user should know where the share can't hold what must be kept at once; None: it can."""
    share, (batch, evaluation) = config.recovery.retention_bytes, _kept_bytes(config, plan)
    if 2 * evaluation <= share and _FEWEST * batch <= share:
        return None
    return (
        f"recovery.retention_bytes: {share / 1e6:.1f} MB hold less than {_FEWEST} batches of {batch / 1e6:.1f} MB, or "
        f"less than twice an evaluation of {evaluation / 1e6:.1f} MB, so a block may keep as much more until the next "
        f"checkpoint; raise it, or use smaller batches or fewer evaluation samples"
    )


def _kept_bytes(config: RunConfig, plan: Plan) -> tuple[int, int]:
    """Return what the actor that keeps most keeps of a training batch, and of an evaluation."""
    training, evaluation = Counter[str](), Counter[str]()
    sizes = sample_bytes(plan)
    for edge in plan.wiring.edges:
        training[edge.producer] += sizes[edge.name].training
        evaluation[edge.producer] += sizes[edge.name].evaluation
    votes = 4 * plan.num_classes
    return (
        config.data.batch_size * (max(training.values()) + _LABEL_BYTES),
        plan.num_evaluated * (max(evaluation.values()) + _LABEL_BYTES + votes),
    )
