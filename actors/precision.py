"""Mixed precision in one block: autocast of the arithmetic, and gradients that neither vanish nor overflow.

Weights, activations on edges and gradients stay fp32. In fp16 the credit is multiplied by a factor
before it is pulled back and every result is divided by it, so that no factor ever leaves the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, autograd
from torch.autograd import Function

GROW_AFTER = 2000
"""Backward passes without an overflow after which the factor is doubled (as torch.amp.GradScaler does)."""
SMALLEST_FACTOR = 2.0**-14

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

    def gradients_of(self, loss: Tensor, targets: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradients of a loss [] with respect to the targets, as `gradients` does with a credit of 1."""
        if self.dtype is torch.float16:
            return self.gradients([loss], targets, [torch.ones_like(loss)], keep=False)
        return list(autograd.grad(loss, targets, allow_unused=True))

    def gradients(
        self, outputs: Sequence[Tensor], targets: Sequence[Tensor], credits: Sequence[Tensor], *, keep: bool
    ) -> list[Tensor | None]:
        """Return the gradients of the sum of <credit, output> with respect to the targets, without the factor.

        In fp16 the factor is halved until nothing overflows. What is not finite at any factor is returned as
        it is and leaves the factor alone.
        """
        if self.dtype is not torch.float16:
            given = [credit.to(output.dtype) for output, credit in zip(outputs, credits, strict=True)]
            return pulled_back(outputs, targets, given, keep=keep)
        factor, can_be_finite = self.factor, _is_finite([*outputs, *credits])
        while True:
            given = [(c * factor).to(output.dtype) for output, c in zip(outputs, credits, strict=True)]
            found = pulled_back(outputs, targets, given, keep=True)
            is_good = can_be_finite and _is_finite([*given, *found])
            if is_good or not can_be_finite or factor <= SMALLEST_FACTOR:
                break
            factor /= 2
        if is_good:
            self._count(factor)
        return [None if g is None else g.float() / factor for g in found]

    def _count(self, factor: float) -> None:
        """Note the factor at which a backward pass did not overflow."""
        self.num_good = self.num_good + 1 if factor == self.factor else 1
        self.factor = factor * 2 if self.num_good % GROW_AFTER == 0 else factor

    def state(self) -> dict[str, float]:
        """Return what a snapshot keeps."""
        return {"factor": self.factor, "num_good": self.num_good}

    def restore(self, state: dict[str, float]) -> None:
        """Take over what `state` returned."""
        self.factor, self.num_good = float(state["factor"]), int(state["num_good"])


class _Credited(Function):
    """A number that has the given credits as its gradients at the outputs, bit for bit."""

    @staticmethod
    def forward(ctx: Any, credits: Sequence[Tensor], *outputs: Tensor) -> Tensor:
        ctx.credits = credits
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, one: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (None, *ctx.credits)


def pulled_back(
    outputs: Sequence[Tensor], targets: Sequence[Tensor], credits: Sequence[Tensor], *, keep: bool
) -> list[Tensor | None]:
    """Return the gradients of the sum of <credit, output> with respect to the targets.

    `autograd.grad` checks credits that it is handed itself with torch.fx's symbolic shapes, whose import takes 0.6 s of
    CPU and 35 MB in every block; of a number it needs none.

    Raises:
        ValueError: a credit has another shape than its output.
    """
    for output, credit in zip(outputs, credits, strict=True):
        if credit.shape != output.shape:
            raise ValueError(f"a credit has shape {tuple(credit.shape)}, expected its output's {tuple(output.shape)}")
    number = _Credited.apply(tuple(credits), *outputs)
    return list(autograd.grad(number, targets, retain_graph=keep, allow_unused=True))


def accumulate(parameters: Sequence[torch.nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to those of the parameters.

    What becomes a parameter's gradient lies in memory like the parameter and shares none with another's
    (clipping and averaging write to it).
    """
    taken: set[int] = set()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is not None:
            parameter.grad = parameter.grad + gradient
        elif gradient.stride() != parameter.stride() or gradient.data_ptr() in taken:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        else:
            parameter.grad = gradient
        taken.add(gradient.data_ptr())


def _is_finite(tensors: Sequence[Tensor | None]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None)
