"""Auxiliary heads: throw-away predictors that give a block its local loss (Belilovsky et al., 1901.08164)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn


class HeadConfig(BaseModel):
    """Shape of an auxiliary head.

    `cnn` is `depth` 3x3 convolutions, pooling to 2x2 and a linear layer; `mlp_sr` first averages down to
    a quarter of the size, then uses 1x1 convolutions; `linear` only pools. `auto` is `cnn` on images and
    a hidden layer of the same width on vectors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto", "linear", "cnn", "mlp_sr", "mlp"] = "auto"
    """Kind of head."""
    depth: int = Field(default=1, ge=0, le=8)
    """Hidden layers: 3x3 convolutions for `cnn`, 1x1 for `mlp_sr`, linear for `mlp`."""
    width: int | None = Field(default=None, ge=1)
    """Channels or units of the hidden layers; None: as many as the block's output has."""
    batch_norm: bool = True
    """Batch norm after every hidden layer."""


def auxiliary_head(config: HeadConfig, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a head from an output of `shape` (without the batch dimension) to `num_classes` scores."""
    if len(shape) != 3:
        features = math.prod(shape)
        depth = 0 if config.kind == "linear" else config.depth
        return _mlp(config, features, depth, num_classes)
    if config.kind == "linear":
        return nn.Sequential(nn.AdaptiveAvgPool2d(_pooled(shape)), *_classify(shape, shape[0], num_classes))
    if config.kind == "mlp_sr":
        return _spatially_reduced(config, shape, num_classes)
    if config.kind == "mlp":
        channels = shape[0] * _pooled(shape) ** 2
        pool = nn.AdaptiveAvgPool2d(_pooled(shape))
        return nn.Sequential(pool, *_mlp(config, channels, config.depth, num_classes))
    width = config.width or shape[0]
    layers, channels = _convolutions(config, shape[0], width, kernel=3)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_pooled(shape)), *_classify(shape, channels, num_classes))


def _pooled(shape: tuple[int, ...]) -> int:
    return min(2, shape[1], shape[2])


def _classify(shape: tuple[int, ...], channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(channels * _pooled(shape) ** 2, num_classes)]


def _convolutions(config: HeadConfig, channels: int, width: int, kernel: int) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    for _ in range(config.depth):
        layers.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=not config.batch_norm))
        layers += [nn.BatchNorm2d(width)] if config.batch_norm else []
        layers.append(nn.ReLU())
        channels = width
    return layers, channels


def _spatially_reduced(config: HeadConfig, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """MLP-SR: average to a quarter of the size before any layer, so that the head costs a few per cent."""
    reduced = (math.ceil(shape[1] / 4), math.ceil(shape[2] / 4))
    layers, channels = _convolutions(config, shape[0], config.width or shape[0], kernel=1)
    small = (shape[0], *reduced)
    pool = nn.AdaptiveAvgPool2d(_pooled(small))
    return nn.Sequential(nn.AdaptiveAvgPool2d(reduced), *layers, pool, *_classify(small, channels, num_classes))


def _mlp(config: HeadConfig, features: int, depth: int, num_classes: int) -> nn.Sequential:
    width = config.width or min(features, 512)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers.append(nn.Linear(features, width))
        layers += [nn.BatchNorm1d(width)] if config.batch_norm else []
        layers.append(nn.ReLU())
        features = width
    return nn.Sequential(*layers, nn.Linear(features, num_classes))
