"""Blocks of one weight each, whose gradients can be worked out by hand; objectives for tests."""

import torch
from torch import nn

from actors.objective import Objective
from actors.objectives.cross_entropy import CrossEntropy

WEIGHTS, HEADS = (2.0, 3.0, 1.0), (2.0, 0.5)


def scalar(weight):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return layer


def network(num_classes):
    """h0 = 2 x, h1 = 3 h0, h2 = h1."""
    return nn.Sequential(nn.Flatten(), *(scalar(weight) for weight in WEIGHTS))


class HalfSquare(Objective):
    """(a h - 2)^2 / 2, with a weight a of its own on every block but the last."""

    paper = "none"

    def __init__(self, config, place, around):
        super().__init__(config, place, around)
        self.head = nn.Identity() if place.is_last else scalar(HEADS[place.index])

    def forward(self, h, batch):
        """Return the mean over the batch."""
        return ((self.head(h) - 2.0) ** 2 / 2).mean()

    def evaluate(self, h, batch):
        """Return the summed loss."""
        return {"loss": self.forward(h, batch) * len(h)}


class NeedsRawInput(CrossEntropy):
    """Cross-entropy that also looks at the network's input."""

    paper = "none"
    fields = frozenset({"labels", "raw_input"})

    def forward(self, h, batch):
        """Return the loss; the raw input must be that of the batch."""
        assert len(batch.raw_input) == len(h)
        return super().forward(h, batch) + 0 * batch.raw_input.mean()


def one_sample():
    """x = 1."""
    return torch.ones(1, 1, 1, 1)
