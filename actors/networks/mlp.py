"""A multi-layer perceptron."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn

from actors.networks.layer import Make


class Options(BaseModel):
    """Settings of `network.name: mlp`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: list[PositiveInt] = Field(default=[256, 256, 256], min_length=1)
    """Units of every hidden layer."""
    activation: Literal["relu", "tanh"] = "relu"
    """Activation of the hidden layers."""
    batch_norm: bool = False
    """Batch norm before every activation."""


def layers(options: Options, input_shape: tuple[int, ...], num_classes: int) -> list[tuple[str, Make]]:
    """Return `hidden1`, `hidden2`, ... and `output`; the first flattens its input."""
    sizes = [math.prod(input_shape), *options.widths]

    def hidden(index: int) -> nn.Module:
        parts: list[nn.Module] = [nn.Flatten()] if index == 0 else []
        parts.append(nn.Linear(sizes[index], sizes[index + 1]))
        parts += [nn.BatchNorm1d(sizes[index + 1])] if options.batch_norm else []
        return nn.Sequential(*parts, nn.ReLU() if options.activation == "relu" else nn.Tanh())

    named: list[tuple[str, Make]] = [
        (f"hidden{index + 1}", lambda index=index: hidden(index)) for index in range(len(options.widths))
    ]
    return [*named, ("output", lambda: nn.Linear(sizes[-1], num_classes))]
