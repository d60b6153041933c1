"""Linear and convolutional maps whose backward pass goes through another matrix than the forward pass.

y = W x + b forwards; backwards the credit at x is B^T dy in place of W^T dy, with B of W's shape, and the
gradients of W and b are those of the forward map (Lillicrap et al. 2016, 1411.0247). The steps are those
that autograd takes for the plain map, so that B = W gives the plain gradients bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def linear(x: Tensor, weight: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Return x [..., in] times weight [out, in] plus bias [out]; credit returns through matrix [out, in].

    A matrix that requires a gradient gets the weight's.
    """
    return _Linear.apply(*_autocast(x, weight, matrix, bias))  # type: ignore[return-value]


def convolution(
    x: Tensor, weight: Tensor, matrix: Tensor, bias: Tensor | None,
    *, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int,
) -> Tensor:  # fmt: skip
    """Return the convolution of x [B, in, ...] with weight [out, in / groups, ...]; credit returns through matrix.

    A matrix that requires a gradient gets the weight's.
    """
    cast = _autocast(x, weight, matrix, bias)
    return _Convolution.apply(*cast, stride, padding, dilation, groups)  # type: ignore[return-value]


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, matrix = ctx.saved_tensors
        for_x, for_weight, for_matrix, for_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        at_x = rows.mm(matrix).reshape(x.shape) if for_x else None
        of_weight = rows.t().mm(x.reshape(-1, x.shape[-1])) if for_weight or for_matrix else None
        of_bias = rows.sum(0) if for_bias else None
        return at_x, of_weight if for_weight else None, of_weight if for_matrix else None, of_bias


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, matrix: Tensor, bias: Tensor | None,
        stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, matrix)
        ctx.geometry = (stride, padding, dilation, False, (0,) * len(stride), groups)
        return torch.convolution(x, weight, bias, *ctx.geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, matrix = ctx.saved_tensors
        for_x, for_weight, for_matrix, for_bias = ctx.needs_input_grad[:4]
        at_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, x, matrix, [matrix.shape[0]], *ctx.geometry, [for_x, for_weight or for_matrix, for_bias]
        )
        of_both = (of_weight if for_weight else None, of_weight if for_matrix else None)
        return at_x, *of_both, of_bias, None, None, None, None


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Cast as autocast would, outside of the function, so that gradients are cast back by autograd."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype is torch.float64 else t.to(dtype) for t in tensors]
