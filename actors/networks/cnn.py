"""A plain convolutional network: 3x3 convolutions, some followed by pooling, one linear layer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn

from actors.networks.layer import Make, image_shape


class Options(BaseModel):
    """Settings of `network.name: cnn`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: list[PositiveInt] = Field(default=[32, 32, 64, 64], min_length=1)
    """Channels of every convolution."""
    pool_after: list[PositiveInt] = [2, 4]
    """Numbers of the convolutions (from 1) that are followed by 2x2 max-pooling."""
    batch_norm: bool = True
    """Batch norm after every convolution."""
    head: Literal["average", "flatten"] = "average"
    """How the last feature maps reach the linear layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the linear layer."""


def layers(options: Options, input_shape: tuple[int, ...], num_classes: int) -> list[tuple[str, Make]]:
    """Return `conv1`, `conv2`, ... and `output`."""
    depth, height, width = image_shape("cnn", input_shape)
    sizes = [depth, *options.channels]
    pools = []
    for number in range(1, len(sizes)):
        pools.append(number in options.pool_after and min(height, width) >= 2)
        if pools[-1]:
            height, width = height // 2, width // 2

    def convolution(index: int) -> nn.Module:
        conv = nn.Conv2d(sizes[index], sizes[index + 1], 3, padding=1, bias=not options.batch_norm)
        parts: list[nn.Module] = [conv]
        parts += [nn.BatchNorm2d(sizes[index + 1])] if options.batch_norm else []
        parts.append(nn.ReLU(inplace=True))
        parts += [nn.MaxPool2d(2)] if pools[index] else []
        return nn.Sequential(*parts)

    def output() -> nn.Module:
        features = sizes[-1] if options.head == "average" else sizes[-1] * height * width
        pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if options.head == "average" else []
        drop: list[nn.Module] = [nn.Dropout(options.dropout)] if options.dropout else []
        return nn.Sequential(*pool, nn.Flatten(), *drop, nn.Linear(features, num_classes))

    named: list[tuple[str, Make]] = [
        (f"conv{index + 1}", lambda index=index: convolution(index)) for index in range(len(options.channels))
    ]
    return [*named, ("output", output)]
