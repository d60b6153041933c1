"""Prediction and similarity matching: samples of one class shall look alike (Nokland & Eidnes, 1901.06656)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from actors.learning_rule import Around, Batch
from actors.needs import Place
from actors.nn.auxiliary_head import HeadConfig, auxiliary_head
from actors.nn.similarity import label_similarity, sample_vectors, similarity_matrix
from actors.scored import ScoredObjective


class PredictionSimilarity(ScoredObjective):
    """Cross-entropy of a linear head plus the match of the batch's similarities with those of its labels."""

    paper = "Nokland, Eidnes 2019, arXiv:1901.06656"

    class Config(ScoredObjective.Config):
        """How the two losses are weighed and computed."""

        beta: float = Field(default=0.99, ge=0, le=1)
        """Weight of the similarity loss; the cross-entropy has 1 - beta."""
        label_similarity: Literal["adjusted", "cosine"] = "adjusted"
        """Similarity of labels of different classes: -1 / (classes - 1), as the paper's, or 0."""
        head: HeadConfig = HeadConfig(kind="linear")
        """The head that gives the cross-entropy; its last layer starts at zero."""

    def __init__(self, config: Config, place: Place, around: Around) -> None:
        super().__init__(config, place, around)
        self.beta = config.beta
        self.num_classes = around.num_classes
        self.adjusted = config.label_similarity == "adjusted"
        self.head, self.features = nn.Identity(), nn.Identity()
        if not place.is_last:
            self.head = _from_zero(auxiliary_head(config.head, around.shape, around.num_classes))
            if len(around.shape) == 3:
                # A bias would change no standard deviation.
                self.features = nn.Conv2d(around.shape[0], around.shape[0], 3, padding=1, bias=False)

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        """Return (1 - beta) cross-entropy + beta similarity loss; the last block has cross-entropy alone."""
        if self.place.is_last or self.beta == 0:
            return super().forward(h, batch)
        similarity = self.similarity_loss(h, batch.labels)
        if self.beta == 1:
            return similarity
        return (1 - self.beta) * super().forward(h, batch) + self.beta * similarity

    def similarity_loss(self, h: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared difference of the similarity matrices of h [B, ...] and labels [B]."""
        found = similarity_matrix(sample_vectors(self.features(h)))
        return functional.mse_loss(found, label_similarity(labels, self.num_classes, adjusted=self.adjusted))


def _from_zero(head: nn.Module) -> nn.Module:
    """Return the head with its last linear layer at zero, so that it starts with even odds."""
    last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return head
