"""VGG for small images (Simonyan, Zisserman 2014, arXiv:1409.1556), one linear classifier."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from actors.networks.layer import Make, image_shape

_PLANS = {
    11: [64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0],
    13: [64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0],
    16: [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0],
    19: [64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, *[512] * 4, 0],
}
"""Channels of every convolution; 0 is a 2x2 max-pooling."""


class Options(BaseModel):
    """Settings of `network.name: vgg`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: Literal[11, 13, 16, 19] = 11
    """Number of layers with weights in the original network."""
    batch_norm: bool = True
    """Batch norm after every convolution."""
    width: float = Field(default=1.0, gt=0)
    """Factor on the number of channels."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the classifier."""


def layers(options: Options, input_shape: tuple[int, ...], num_classes: int) -> list[tuple[str, Make]]:
    """Return `conv1`, `norm1`, `relu1`, `pool1`, ... and `output`; pools that leave nothing are left out."""
    named: list[tuple[str, Make]] = []
    channels, height, width_in = image_shape("vgg", input_shape)
    size = min(height, width_in)
    convolutions = pools = 0
    for entry in _PLANS[options.depth]:
        if entry == 0:
            if size >= 2:
                pools, size = pools + 1, size // 2
                named.append((f"pool{pools}", lambda: nn.MaxPool2d(2)))
            continue
        convolutions += 1
        width = max(1, round(entry * options.width))
        named += _convolution(convolutions, channels, width, options.batch_norm)
        channels = width

    def output() -> nn.Module:
        drop = [nn.Dropout(options.dropout)] if options.dropout else []
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *drop, nn.Linear(channels, num_classes))

    return [*named, ("output", output)]


def _convolution(number: int, channels: int, width: int, batch_norm: bool) -> list[tuple[str, Make]]:
    parts: list[tuple[str, Make]] = [
        (f"conv{number}", lambda: nn.Conv2d(channels, width, 3, padding=1, bias=not batch_norm))
    ]
    if batch_norm:
        parts.append((f"norm{number}", lambda: nn.BatchNorm2d(width)))
    return [*parts, (f"relu{number}", lambda: nn.ReLU(inplace=True))]
