"""Objectives whose head turns a block's output into class scores: the base of the supervised local losses."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from actors.learning_rule import Batch
from actors.needs import Place
from actors.objective import Objective


class ScoredObjective(Objective):
    """Cross-entropy of a head's scores; on the last block the head must be `nn.Identity`.

    Subclasses set `head` and add their own terms to the loss.
    """

    head: nn.Module

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the batch; h [B, ...], labels [B]."""
        return functional.cross_entropy(self.scores(h), batch.labels)

    def scores(self, h: Tensor) -> Tensor:
        """Return the head's class scores [B, num_classes], in fp32 so that no loss is rounded."""
        return self.head(h).float()

    def evaluate(self, h: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the summed cross-entropy, other terms left out, and the number of correct predictions."""
        scores = self.scores(h)
        return {
            "loss": functional.cross_entropy(scores, batch.labels, reduction="sum"),
            "correct": (scores.argmax(dim=1) == batch.labels).sum(),
        }


def way_up(place: Place) -> float:
    """Return how far up the chain a block is: 0 for the first, 1 for the last that has an auxiliary head."""
    return place.index / (place.num_blocks - 2) if place.num_blocks > 2 else 0.0
