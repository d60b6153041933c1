"""Models of what a block would otherwise wait for: its gradient and its input (Jaderberg et al. 2017, 1608.05343).

Their batch norm always uses the statistics of the batch at hand, in prediction and in regression alike: a
model is only ever asked about training batches, and what it says must not depend on how often it was asked.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

WIDEST = 1024
"""Hidden units of the paper's fully connected models."""


class SynthesizerConfig(BaseModel):
    """Size of a model: fully connected on vectors; on images convolutions that keep the size, without pooling."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden_layers: int = Field(default=1, ge=0, le=8)
    """Hidden layers, each with batch norm and ReLU; 0: a linear model."""
    width: int | None = Field(default=None, ge=1)
    """Units or channels of a hidden layer; None: as many as are predicted, at most 1024."""
    kernel: int = Field(default=5, ge=1)
    """Size of the convolutions, an odd number."""

    @field_validator("kernel")
    @classmethod
    def _is_odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("expected an odd number")
        return kernel


class Synthesizer(nn.Module):
    """Predicts the gradient at a block's output from that output, and from the labels if it is conditioned on them.

    The label, one-hot, goes through a linear layer and is added to the first hidden pre-activation, in a
    linear model to the output; on images the same at every position. The last layer starts at zero, and so
    does the synthetic gradient.

    Args:
        config: its size.
        shape: of one sample of the block's output.
        num_classes: of the labels; None: it is not conditioned on them.
    """

    def __init__(self, config: SynthesizerConfig, shape: tuple[int, ...], num_classes: int | None) -> None:
        super().__init__()
        self.is_image, self.num_classes = len(shape) == 3, num_classes
        size = shape[0] if self.is_image else math.prod(shape)
        width = config.width or min(size, WIDEST)
        depth = config.hidden_layers
        widths = [size, *[width] * depth, size]
        layers = [
            _layer(self.is_image, widths[i], widths[i + 1], config.kernel, bias=i == depth) for i in range(depth + 1)
        ]
        self.first = layers[0]
        self.label = nn.Linear(num_classes, widths[1], bias=False) if num_classes is not None else None
        self.rest = nn.Sequential(*(part for layer in layers[1:] for part in [*_hidden(self.is_image, width), layer]))
        starts_at_zero = [layers[-1], self.label if depth == 0 else None]
        for parameter in (p for module in starts_at_zero if module is not None for p in module.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, labels: Tensor | None) -> Tensor:
        """Return the prediction [B, ...] for h [B, ...] and labels, int64 [B]."""
        x = self.first(h if self.is_image else h.flatten(1))
        if self.label is not None and self.num_classes is not None:
            assert labels is not None, "a conditioned synthesizer needs labels"
            added = self.label(functional.one_hot(labels, self.num_classes).to(x.dtype))
            x = x + (added[:, :, None, None] if self.is_image else added)
        return self.rest(x).reshape(h.shape)


class InputModel(nn.Module):
    """Predicts a block's input from the network's input.

    From images to images it is convolutional, and its first layer's stride brings the size down; in all
    other cases it is fully connected.

    Args:
        config: its size.
        raw_shape: of one sample of the network's input.
        shape: of one sample of the block's input.
    """

    def __init__(self, config: SynthesizerConfig, raw_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.is_image, self.shape = len(raw_shape) == len(shape) == 3, shape
        raw_size, size = (s[0] if self.is_image else math.prod(s) for s in (raw_shape, shape))
        width = config.width or min(size, WIDEST)
        depth = config.hidden_layers
        widths = [raw_size, *[width] * depth, size]
        layers: list[nn.Module] = []
        for i in range(depth + 1):
            layers += _hidden(self.is_image, width) if i > 0 else []
            if self.is_image and i == 0:
                layers += _resizing(raw_shape, (widths[1], *shape[1:]), config.kernel, bias=depth == 0)
            else:
                layers.append(_layer(self.is_image, widths[i], widths[i + 1], config.kernel, bias=i == depth))
        self.layers = nn.Sequential(*layers)

    def forward(self, raw: Tensor) -> Tensor:
        """Return the prediction [B, ...] for the network's input [B, ...]."""
        return self.layers(raw if self.is_image else raw.flatten(1)).reshape(-1, *self.shape)


def _layer(is_image: bool, size: int, next_size: int, kernel: int, *, bias: bool) -> nn.Module:
    if is_image:
        return nn.Conv2d(size, next_size, kernel, padding=kernel // 2, bias=bias)
    return nn.Linear(size, next_size, bias=bias)


def _hidden(is_image: bool, width: int) -> list[nn.Module]:
    norm = nn.BatchNorm2d if is_image else nn.BatchNorm1d
    return [norm(width, track_running_stats=False), nn.ReLU()]


def _resizing(shape: tuple[int, ...], wanted: tuple[int, ...], kernel: int, *, bias: bool) -> list[nn.Module]:
    """A convolution from one image shape to another; it pools where no whole stride gives the size."""
    stride = [max(1, size // next_size) for size, next_size in zip(shape[1:], wanted[1:], strict=True)]
    kernel = max(kernel, *(2 * step - 1 for step in stride))  # no pixel is left out
    convolution = nn.Conv2d(shape[0], wanted[0], kernel, (stride[0], stride[1]), kernel // 2, bias=bias)
    reached = [math.ceil(size / step) for size, step in zip(shape[1:], stride, strict=True)]
    fits = reached == list(wanted[1:])
    return [convolution] if fits else [convolution, nn.AdaptiveAvgPool2d((wanted[1], wanted[2]))]
