"""Sign symmetry: feedback matrices with the signs of the weights and sizes of their own (Liao et al. 2016,
1510.05067; Xiao et al. 2018, 1811.03567)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Generator, Tensor

from actors.feedback_rule import FeedbackConfig, FeedbackRule
from actors.nn.feedback_layers import FeedbackMatrix, drawn


class SignSymmetry(FeedbackRule):
    """Back-propagation through feedback matrices that know the signs of the weights and not their sizes.

    The fresh draws of `brsf` come from the generator that dropout uses: dropout in the same layer of the
    network drops other units than under back-propagation.
    """

    paper = "Liao, Leibo, Poggio 2016, arXiv:1510.05067; Xiao et al. 2018, arXiv:1811.03567"

    class Config(FeedbackConfig):
        """Which losses train a block, and what the feedback matrices are made of."""

        variant: Literal["usf", "frsf", "brsf"] = "usf"
        """Sizes beside the signs: all equal `scale`; drawn once; drawn anew for every batch."""

    def matrix(self, weight: Tensor, std: float, generator: Generator) -> FeedbackMatrix:
        """Choose the layer's sizes; `std` is the root mean square of all of them."""
        assert isinstance(self.config, SignSymmetry.Config)
        if self.config.variant == "frsf":
            return FixedSizes(drawn(weight, std, generator).abs())
        return FreshSizes(std) if self.config.variant == "brsf" else EqualSizes(std)


class EqualSizes(FeedbackMatrix):
    """Signs times one number (uSF)."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, weight: Tensor) -> Tensor:
        """Return B of the signs that the weight has by now."""
        return weight.detach().sign() * self.std


class FixedSizes(FeedbackMatrix):
    """Signs times sizes that never change (frSF)."""

    added_tensors = ("sizes",)
    sizes: Tensor

    def __init__(self, sizes: Tensor) -> None:
        super().__init__()
        self.register_buffer("sizes", sizes)

    def forward(self, weight: Tensor) -> Tensor:
        """Return B of the signs that the weight has by now."""
        return weight.detach().sign() * self.sizes


class FreshSizes(FeedbackMatrix):
    """Signs times sizes drawn anew in every forward pass (brSF).

    A compiler would move the draw into the backward pass, when the generator has gone on.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std
        self._draw: Callable[[Tensor, float], Tensor] = cast(Any, torch.compiler.disable(_drawn_sizes))

    def forward(self, weight: Tensor) -> Tensor:
        """Return B of the signs that the weight has by now, by the global generator."""
        return weight.detach().sign() * self._draw(weight.detach(), self.std)


def _drawn_sizes(weight: Tensor, std: float) -> Tensor:
    return torch.randn_like(weight).abs() * std
