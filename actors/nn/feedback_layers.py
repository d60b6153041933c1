"""Layers that send credit down through a feedback matrix in place of their own weights.

A feedback layer is a linear or convolutional layer of torch that has changed its class and got a
sub-module `feedback`, which turns the layer's weight W into the feedback matrix B of the same shape.
Forward pass, names and state of the layer stay as they are. What the sub-module keeps is named by its
`added_tensors`, so that it is part of a snapshot and no part of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.modules.conv import _ConvNd

from actors.errors import UserError
from actors.networks.body import Body
from actors.nn.feedback_functions import convolution, linear
from actors.seeds import seed_of

_OTHERS = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""What transports weights as well; subclasses of the layers below are among them."""


class FeedbackMatrix(nn.Module):
    """Makes the feedback matrix B of one layer."""

    added_tensors: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters and buffers of this module."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return B for the layer's weight, in its shape; called in every training forward pass."""
        raise NotImplementedError(f"{type(self).__name__} must make a feedback matrix")


MakeMatrix = Callable[[Tensor, float, Generator], FeedbackMatrix]
"""From a layer's initial weight, the standard deviation asked for, and a generator of the layer's own."""


class FeedbackLinear(nn.Linear):
    """A linear layer with a feedback matrix."""

    feedback: FeedbackMatrix

    def forward(self, input: Tensor) -> Tensor:
        """Map input [..., in] to [..., out]."""
        if not torch.is_grad_enabled():
            return super().forward(input)
        return linear(input, self.weight, self.feedback(self.weight), self.bias)


class _FeedbackConvolution(_ConvNd):
    feedback: FeedbackMatrix

    def forward(self, input: Tensor) -> Tensor:
        """Convolve input [B, in, ...] to [B, out, ...]."""
        if not torch.is_grad_enabled():
            return super().forward(input)
        padded, padding = _padded(self, input)
        return convolution(
            padded, self.weight, self.feedback(self.weight), self.bias,
            stride=self.stride, padding=padding, dilation=self.dilation, groups=self.groups,
        )  # fmt: skip


class FeedbackConv1d(_FeedbackConvolution, nn.Conv1d):
    """A convolution over length with a feedback matrix."""


class FeedbackConv2d(_FeedbackConvolution, nn.Conv2d):
    """A convolution over height and width with a feedback matrix."""


class FeedbackConv3d(_FeedbackConvolution, nn.Conv3d):
    """A convolution over depth, height and width with a feedback matrix."""


FeedbackLayer = FeedbackLinear | FeedbackConv1d | FeedbackConv2d | FeedbackConv3d

_KINDS: dict[type[nn.Module], type[FeedbackLayer]] = {
    nn.Linear: FeedbackLinear, nn.Conv1d: FeedbackConv1d, nn.Conv2d: FeedbackConv2d, nn.Conv3d: FeedbackConv3d,
}  # fmt: skip


def use_feedback(body: Body, make: MakeMatrix, scale: float | None) -> None:
    """Turn every linear and convolutional layer of a body into a feedback layer.

    Args:
        body: the block's layers, with their initial weights.
        make: makes a layer's feedback matrix; what it draws depends on the run's seed and the layer's
            name only, so not on cuts.
        scale: standard deviation of the feedback matrices; None: of each layer's own initial weights.

    Raises:
        UserError: a layer transports weights in a way not known here, or its initial weights are all alike
            and `scale` is None.
    """
    for name, layer in zip(body.names, body.layers, strict=True):
        for path, module in layer.named_modules():
            kind = _KINDS.get(type(module))
            if kind is not None:
                generator = Generator().manual_seed(seed_of(body.seed, "feedback", name, path))
                assert isinstance(module.weight, Tensor)
                std = scale if scale is not None else _spread(module.weight, ".".join(filter(None, (name, path))))
                module.feedback = make(module.weight, std, generator)
                module.__class__ = kind
            elif isinstance(module, _OTHERS):
                raise UserError(
                    f"network: layer {name!r} holds a {type(module).__name__}, expected nn.Linear or nn.Conv1d to "
                    f"nn.Conv3d, the layers for which feedback matrices are defined; choose another network or rule"
                )


def feedback_layers(body: Body) -> Iterator[tuple[str, FeedbackLayer]]:
    """Yield the feedback layers of a body by their names in the network."""
    for name, layer in zip(body.names, body.layers, strict=True):
        for path, module in layer.named_modules():
            if isinstance(module, FeedbackLayer):
                yield ".".join(filter(None, (name, path))), module


def drawn(weight: Tensor, std: float, generator: Generator) -> Tensor:
    """Return Gaussian numbers of a weight's shape, type and device; the same ones on every device."""
    return (torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * std).to(weight.device)


def _spread(weight: Tensor, name: str) -> float:
    std = float(weight.detach().std(correction=0))
    if std == 0.0:
        raise UserError(
            f"rule.scale: the initial weights of layer {name!r} are all alike, so they give no scale for its "
            f"feedback matrix, expected a number; set rule.scale"
        )
    return std


def _padded(layer: _ConvNd, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Pad as torch's own layer does where numbers per dimension don't say it; return what is left to pad."""
    none = (0,) * len(layer.stride)
    if layer.padding_mode != "zeros":
        return F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), none
    if layer.padding == "valid":
        return x, none
    if layer.padding != "same":
        assert not isinstance(layer.padding, str)
        return x, layer.padding
    both = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(amount % 2 for amount in both):
        x = F.pad(x, [side for amount in reversed(both) for side in (0, amount % 2)])
    return x, tuple(amount // 2 for amount in both)
