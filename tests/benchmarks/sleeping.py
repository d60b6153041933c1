"""A network of simulated devices: its layers compute next to nothing and take known times by sleeping.

The forward pass sleeps, and so does each half of the backward pass, the one for the input's gradient and the
one for the weights', only when it is asked for. Times come from the environment, which worker processes
inherit: SLEEPING="layers forward_ms backward_ms [units]".
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

UNITS = 4


class SlowInput(Function):
    """The identity; sleeps in its forward pass, and half a backward pass for the input's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward_s: float, backward_s: float) -> Tensor:
        ctx.sleep_s = backward_s / 2
        time.sleep(forward_s)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.sleep_s)
        return gradient, None, None


class SlowWeight(Function):
    """The identity on a weight; sleeps half a backward pass for its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, backward_s: float) -> Tensor:
        ctx.sleep_s = backward_s / 2
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.sleep_s)
        return gradient, None


class Sleeping(nn.Module):
    """Scales each of its units, slowly once training has begun."""

    def __init__(self, forward_s: float, backward_s: float, units: int = UNITS) -> None:
        super().__init__()
        self.forward_s, self.backward_s = forward_s, backward_s
        self.weight = nn.Parameter(torch.ones(units))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if not self.training:
            return x * self.weight
        slow = SlowInput.apply(x, self.forward_s, self.backward_s)
        return slow * SlowWeight.apply(self.weight, self.backward_s)


def build() -> nn.Sequential:
    """Return the network that the environment describes."""
    layers, forward_ms, backward_ms, *units = os.environ["SLEEPING"].split()
    times = float(forward_ms) / 1000, float(backward_ms) / 1000
    found: list[tuple[str, nn.Module]] = [(f"layer{i}", Sleeping(*times, *map(int, units))) for i in range(int(layers))]
    if units:
        found.append(("output", nn.Linear(int(units[0]), UNITS)))  # a score per class, whatever the messages' size
    return nn.Sequential(OrderedDict(found))
