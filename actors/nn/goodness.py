"""Goodness: how strongly a layer answers, and the logistic loss that tells real data from made-up data by it
(Hinton 2022, 2212.13345).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-8
"""Added to a length before dividing by it, so that a silent sample stays zero."""

Kind = Literal["sum", "mean"]


def goodness(h: Tensor, kind: Kind) -> Tensor:
    """Return each sample's sum or mean of squared activations, [B], of h [B, ...]."""
    squares = h.flatten(1).float().square()
    return squares.sum(dim=1) if kind == "sum" else squares.mean(dim=1)


def goodness_loss(positive: Tensor, negative: Tensor, kind: Kind, threshold: float) -> Tensor:
    """Return the mean logistic loss, a scalar, that pushes goodness up on one and down on the other.

    It is divided so that the length of its gradient at the activations depends neither on the number of
    units nor on the kind, and one learning rate fits blocks of every width.

    Args:
        positive: activations of real data, [B, ...].
        negative: activations of made-up data, [B, ...].
        kind: `sum` takes both goodness and threshold once per unit, which makes the logistic steeper.
        threshold: the mean square at which a sample counts as real with probability one half.
    """
    units = positive[0].numel()
    steepness = units if kind == "sum" else 1
    above = goodness(positive, kind) - threshold * steepness
    below = threshold * steepness - goodness(negative, kind)
    return functional.softplus(-torch.cat([above, below])).mean() * math.sqrt(units) / steepness


def length_normalised(h: Tensor) -> Tensor:
    """Return h [B, ...] with length 1 per sample, measured as root mean square; zeros stay zeros.

    What is left is the direction: the goodness that this layer has learned tells the next one nothing.
    """
    h = h.float()
    length = h.flatten(1).square().mean(dim=1).sqrt()
    return h / (length + EPSILON).view(-1, *[1] * (h.dim() - 1))
