"""Feedback alignment: credit goes down through fixed random matrices (Lillicrap et al. 2016, 1411.0247)."""

from __future__ import annotations

from torch import Generator, Tensor

from actors.feedback_rule import FeedbackConfig, FeedbackRule
from actors.nn.feedback_layers import FeedbackMatrix, drawn


class FeedbackAlignment(FeedbackRule):
    """Back-propagation through fixed random feedback matrices; the weights learn to agree with them."""

    paper = "Lillicrap et al. 2016, arXiv:1411.0247"

    class Config(FeedbackConfig):
        """Which losses train a block, and how large feedback matrices are."""

    def matrix(self, weight: Tensor, std: float, generator: Generator) -> FeedbackMatrix:
        """Draw the layer's feedback matrix once and for all."""
        return FixedMatrix(drawn(weight, std, generator))


class FixedMatrix(FeedbackMatrix):
    """A feedback matrix that never changes."""

    added_tensors = ("matrix",)
    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the matrix, whatever the weight."""
        return self.matrix
