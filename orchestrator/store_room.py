"""Fits what is under way on all edges into the object store of a node, so that nothing is written to disk. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.config import RunConfig
from orchestrator.config.legality import outbox_capacity
from orchestrator.message_sizes import sample_bytes
from orchestrator.plan import Plan
from orchestrator.specs import is_unordered

SHARE = 0.7
"""Of the store that messages may take; Ray spills from 0.8 on."""
INLINE_BYTES = 100 * 1024
"""Smaller messages travel inside the call's answer and take no room."""


def message_bytes(config: RunConfig, plan: Plan) -> dict[str, int]:
    """Return the size of a message of every edge, in bytes: activations and their gradients in 32 bits."""
    batch, evaluation = config.data.batch_size, config.evaluation.batch_size or config.data.batch_size
    sizes = sample_bytes(plan).items()
    return {edge: max(batch * size.training, evaluation * size.evaluation) for edge, size in sizes}


def fitted(config: RunConfig, plan: Plan, store_bytes: int | None) -> tuple[RunConfig, str | None]:
    """Return the config with buffers that fit into the store, and what the user should know of that.

    An edge holds what waits for its consumer, as much again that has been handed over and not acknowledged, and one
    message that is worked on; a block with late feedback also what its open passes began with. Under first in, first
    out smaller buffers change the speed and no weight.

    Args:
        store_bytes: of the smallest node; None: messages do not travel through a store.
    """
    in_store = {edge: size for edge, size in message_bytes(config, plan).items() if size > INLINE_BYTES}
    if store_bytes is None or not in_store:
        return config, None
    sizes, held = list(in_store.values()), _held_bytes(plan, in_store)
    room = int(SHARE * store_bytes) - held
    asked = outbox_capacity(config)
    capacity = next((c for c in range(asked, 0, -1) if _most_bytes(sizes, c) <= room), 0)
    if capacity == asked and config.buffers.mode == "fixed":
        return config, None
    where = f"placement.object_store_bytes: {store_bytes / 1e6:.0f} MB hold"
    if config.buffers.mode == "auto":
        budget = min(config.buffers.budget_bytes or room, max(1, room))
        return _with(config, budget_bytes=budget, capacity=max(1, capacity)), None
    need = f"{(_most_bytes(sizes, asked) + held) / 1e6:.0f} MB that {asked} messages on every edge may put under way"
    if capacity == 0 or is_unordered(config):
        return config, f"{where} less than the {need}; Ray will write some to disk: give it more, or smaller batches"
    window = None if config.buffers.window is None else min(config.buffers.window, capacity)
    return (
        _with(config, capacity=capacity, window=window),
        f"{where} less than the {need}, so the capacity is {capacity} in this job; give the store more for more speed",
    )


def _with(config: RunConfig, **values: int | None) -> RunConfig:
    return config.model_copy(update={"buffers": config.buffers.model_copy(update=values)})


def _most_bytes(sizes: Sequence[int], capacity: int) -> int:
    return sum(sizes) * (2 * capacity + 1)


def _held_bytes(plan: Plan, in_store: Mapping[str, int]) -> int:
    """Return the bytes of inputs that wait in open passes for feedback which comes late."""
    longest = ((edges.driver, max((late.delay for late in edges.late), default=0)) for edges in plan.wiring.blocks)
    return sum(delay * in_store.get(driver, 0) for driver, delay in longest)
