"""Mixed precision in one block: autocast of the arithmetic, and gradients that neither vanish nor overflow.

Weights, activations on edges and gradients stay fp32. In fp16 the credit is multiplied by a factor
before it is pulled back and every result is divided by it, so that no factor ever leaves the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, autograd

GROW_AFTER = 2000
"""Backward passes without an overflow after which the factor is doubled (as torch.amp.GradScaler does)."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How a block computes: `fp32`, `bf16` or `fp16`.

    Args:
        name: one of the three.
        device_type: `cpu` or `cuda`.
    """

    def __init__(self, name: str, device_type: str) -> None:
        self.dtype = _DTYPES.get(name)
        self.device_type = device_type
        self.factor = 2.0**16 if name == "fp16" else 1.0
        self.num_good = 0

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def gradients(
        self, output: Tensor, targets: Sequence[Tensor], credit: Tensor, *, keep: bool
    ) -> list[Tensor | None]:
        """Return the gradients of <credit, output> with respect to the targets, without the factor.

        In fp16 the factor is halved until nothing overflows that is finite in fp32.
        """
        if self.dtype is not torch.float16:
            found = autograd.grad(output, targets, credit.to(output.dtype), retain_graph=keep, allow_unused=True)
            return list(found)
        while True:
            scaled = (credit * self.factor).to(output.dtype)
            found = autograd.grad(output, targets, scaled, retain_graph=True, allow_unused=True)
            if self.factor <= 1.0 or all(bool(g.isfinite().all()) for g in (scaled, *found) if g is not None):
                break
            self.factor, self.num_good = self.factor / 2, 0
        factor = self.factor
        self.num_good += 1
        if self.num_good % GROW_AFTER == 0:
            self.factor *= 2
        return [None if g is None else g.float() / factor for g in found]

    def state(self) -> dict[str, float]:
        """Return what a snapshot keeps."""
        return {"factor": self.factor, "num_good": self.num_good}

    def restore(self, state: dict[str, float]) -> None:
        """Take over what `state` returned."""
        self.factor, self.num_good = float(state["factor"]), int(state["num_good"])


def accumulate(parameters: Sequence[torch.nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to those of the parameters."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
