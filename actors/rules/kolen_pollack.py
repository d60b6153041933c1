"""Kolen-Pollack learning: feedback matrices that learn by their layer's own update (Kolen and Pollack 1994,
doi:10.1109/ICNN.1994.374486; Akrout et al. 2019, 1904.05391)."""

from __future__ import annotations

from torch import Generator, Tensor, nn

from actors.feedback_rule import FeedbackConfig, FeedbackRule
from actors.nn.feedback_layers import FeedbackMatrix, drawn


class KolenPollack(FeedbackRule):
    """Back-propagation through learned feedback matrices: each gets its weight's gradient and decay.

    W and B start apart and take the same steps, so that W - B shrinks with the optimizer's
    `weight_decay` and with nothing else: by the factor 1 - rate * decay per step of plain SGD. Adaptive
    optimizers keep this only where the decay is decoupled from the gradient (AdamW). The norm that
    `optimizer.clip` bounds counts W's gradient and B's.
    """

    paper = "Kolen and Pollack 1994, doi:10.1109/ICNN.1994.374486; Akrout et al. 2019, arXiv:1904.05391"

    class Config(FeedbackConfig):
        """Which losses train a block, and how large feedback matrices are at first."""

    def matrix(self, weight: Tensor, std: float, generator: Generator) -> FeedbackMatrix:
        """Draw the layer's first feedback matrix."""
        return LearnedMatrix(drawn(weight, std, generator), learns=weight.requires_grad)


class LearnedMatrix(FeedbackMatrix):
    """A feedback matrix that is a parameter of its block, trained beside the weight."""

    added_tensors = ("matrix",)

    def __init__(self, matrix: Tensor, *, learns: bool) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix, requires_grad=learns)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the matrix as it is by now."""
        return self.matrix
