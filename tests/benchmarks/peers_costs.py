"""What one training step of the comparison costs, counted: back-propagation, our blocks, their auxiliary heads."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from actors.block import Block
from actors.messages import Flags, Kind, Message
from orchestrator.specs import block_spec
from tests.benchmarks.peers_arms import decoupled_bound
from tests.benchmarks.peers_work import Work, config_of


class Counted(TorchDispatchMode):
    """Counts the FLOPs of convolutions and matrix products; torch's own counter does not bear `autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator and count it."""
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def costs(network: str) -> dict[str, Any]:
    """Return the FLOPs of convolutions and matrix products per sample, and the bound that follows from them."""
    work = Work(config_of(network))
    batch = next(work.batches())
    size = len(batch.labels)
    module = work.module()
    with Counted() as counted:
        functional.cross_entropy(module(batch.inputs), batch.labels).backward()
    backprop = counted.flops / size
    blocks, heads, tensors = [], [], {"h": batch.inputs, "labels": batch.labels}
    for index, shape in enumerate(work.plan.shapes):
        block = Block(block_spec(work.config, work.plan, index, "costs"), shape)
        with Counted() as counted:
            sent = block.now(Message(Kind.ACTIVATION, 0, flags=Flags.NONE, tensors=tensors))
        blocks.append(counted.flops / size)
        heads.append(_head_flops(block, sent.up, tensors) / size)
        tensors = {**tensors, "h": sent.up}
    head_share = sum(heads) / backprop
    saved_share = (backprop + sum(heads) - sum(blocks)) / backprop
    return {
        "backprop_flops_per_sample": backprop, "block_flops_per_sample": blocks, "head_flops_per_sample": heads,
        "head_share": head_share, "saved_input_gradient_share": saved_share, "heads": _heads(work),
        "bound": decoupled_bound(len(blocks), head_share, saved_share),
    }  # fmt: skip


def _head_flops(block: Block, h: torch.Tensor | None, tensors: dict[str, torch.Tensor]) -> int:
    """Count a block's objective alone, with the gradient at its input; the last block's is no head."""
    if block.place.is_last:
        return 0
    assert block.objective is not None and h is not None
    with Counted() as counted:
        scores = block.objective.scores(h.detach().requires_grad_())  # type: ignore[union-attr]
        assert scores is not None
        functional.cross_entropy(scores, tensors["labels"]).backward()
    return counted.flops


def _heads(work: Work) -> list[str]:
    """Describe the auxiliary head of every block but the last."""
    found = []
    for index, shape in enumerate(work.plan.shapes[:-1]):
        block = Block(block_spec(work.config, work.plan, index, "costs"), shape)
        assert block.objective is not None
        kinds = [module for module in block.objective.modules() if not list(module.children())]
        found.append(", ".join(str(module) for module in kinds))
    return found
