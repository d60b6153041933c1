"""What every layer of a network costs by itself, and every place to cut at: what automatic cuts are made from."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch

from actors.block import Block
from actors.datasets.batches import TrainBatches
from actors.datasets.loading import load_data
from actors.messages import Flags, Kind, Message
from actors.module_pass import Late
from actors.needs import Driver, Feedback
from orchestrator.balanced_cuts import LayerCost
from orchestrator.carriage import carriage
from orchestrator.config import RunConfig
from orchestrator.plan import Plan
from orchestrator.specs import block_spec, data_spec

FEWEST = 3
"""Times that each layer is measured, after once to warm up."""


def layer_costs(config: RunConfig, plan: Plan, seconds: float, show: Callable[[str], None]) -> list[LayerCost]:
    """Measure the layers one after another, as blocks of one layer, on a batch of the training data.

    Args:
        config: of the run.
        plan: of the same run with every layer a block.
        seconds: to spend on all of them, about.
        show: told now and then how far it is.
    """
    data = load_data(data_spec(config))
    batch = TrainBatches(data, data_spec(config), 1).batch(0)
    h = batch.inputs
    incoming = carriage(h.numel() * h.element_size())
    costs, told = [], time.monotonic()
    for index, shape in enumerate(plan.shapes):
        block = Block(block_spec(config, plan, index, "cuts"), shape)
        raw = batch.inputs if "raw_input" in block.spec.fields else None
        has_feedback = index > 0 and plan.needs[index - 1].feedback is not Feedback.NONE
        sends_gradient, block.sends_gradient = block.sends_gradient, True
        drives = batch.inputs if plan.needs[index].driver is Driver.RAW_INPUT else h
        message = Message(Kind.ACTIVATION, 0, tensors={"h": drives, "labels": batch.labels})
        forward, backward, weights, head, update = _steps(block, message, raw, seconds / len(plan.shapes))
        h = block.forward(message, raw).cpu()
        outgoing = carriage(h.numel() * h.element_size())
        costs.append(
            LayerCost(
                forward=2 * forward if block.late is Late.RECOMPUTE else forward,
                backward=backward, first_backward=backward if sends_gradient else weights,
                update=update, head=head,
                enter=incoming.receive.wall_s + (incoming.send.wall_s if has_feedback else 0.0),
                leave=0.0 if index == len(plan.shapes) - 1 else outgoing.send.wall_s,
            )
        )  # fmt: skip
        incoming = outgoing
        if time.monotonic() - told > 1.0:
            told = time.monotonic()
            show(f"profiling for network.blocks=auto: layer {index + 1} of {len(plan.shapes)}")
    return costs


def _steps(
    block: Block, message: Message, raw: torch.Tensor | None, seconds: float
) -> tuple[float, float, float, float, float]:
    """Return the seconds of: forward, backward to input and weights, to weights alone, objective and head, update."""
    taken: list[tuple[float, float, float, float, float]] = []
    begun = time.perf_counter()
    while len(taken) <= FEWEST or time.perf_counter() - begun < seconds:
        marks = [_now(block)]
        block.forward(message, raw)
        marks.append(_now(block))
        p = block.open.pop(message.batch_id)
        credit = block._credit(p) if block.objective is not None else torch.ones_like(p.h)
        block._step("heads", "heads", 0, Flags.LAST)
        marks.append(_now(block))
        p.vjp(credit, weights=True, input=True, keep=True)
        marks.append(_now(block))
        p.vjp(credit, weights=True, input=False)
        marks.append(_now(block))
        block.update(Flags.LAST)
        marks.append(_now(block))
        forward, head, backward, weights, update = (b - a for a, b in pairwise(marks))
        taken.append((forward, backward, min(weights, backward), head, update))
    return tuple(map(median, zip(*taken[1:], strict=True)))  # type: ignore[return-value]


def _now(block: Block) -> float:
    """Return the clock once the block's device has done what it was told."""
    if block.device.type == "cuda":
        torch.cuda.synchronize(block.device)
    return time.perf_counter()
