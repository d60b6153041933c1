"""Small decoders from a block's output back to the network's input (Wang et al. 2021, 2101.10832)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 12
"""Channels between the decoder's two convolutions."""


class ImageDecoder(nn.Module):
    """Bilinear resizing and two 3x3 convolutions.

    Args:
        channels: of the block's output.
        raw_shape: (C, H, W) of one sample of the network's input.
    """

    def __init__(self, channels: int, raw_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.size = raw_shape[1:]
        self.hidden = nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.output = nn.Conv2d(WIDTH, raw_shape[0], 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, C, H, W], before the sigmoid, of h [B, channels, h, w]."""
        resized = functional.interpolate(h, size=self.size, mode="bilinear", align_corners=False)
        return self.output(functional.relu(self.norm(self.hidden(resized))))


def decoder(shape: tuple[int, ...], raw_shape: tuple[int, ...]) -> nn.Module:
    """Return a decoder from samples of `shape` to logits of `raw_shape`; a linear layer unless both are images."""
    if len(shape) == len(raw_shape) == 3:
        return ImageDecoder(shape[0], raw_shape)
    linear = nn.Linear(math.prod(shape), math.prod(raw_shape))
    return nn.Sequential(nn.Flatten(), linear, nn.Unflatten(1, raw_shape))


class Pixels(nn.Module):
    """Undoes the normalisation of the network's input.

    Args:
        mean: of the channels before they were normalised; empty if they were not.
        std: likewise.
        num_dims: dimensions of one sample.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], num_dims: int) -> None:
        super().__init__()
        per_channel = (-1, *[1] * (num_dims - 1))
        self.register_buffer("mean", torch.tensor(mean or (0.0,)).view(per_channel), persistent=False)
        self.register_buffer("std", torch.tensor(std or (1.0,)).view(per_channel), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        """Return raw [B, C, ...] as pixels in 0..1; what lies outside is cut off."""
        return (raw * self.std + self.mean).clamp(0, 1)
