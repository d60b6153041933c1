"""Back-propagation through feedback matrices: the base of the rules that avoid weight transport.

Messages, delays and losses are those of `actors.reach`; only what a layer multiplies the credit with on
its way down differs, so no lock is removed. Norms, pooling and activations use their own derivatives, and so
do the auxiliary heads of `losses: every`. The gradient sent to the block below goes through the feedback
matrix of this block's first layer.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Generator, Tensor, nn

from actors.networks.body import Body
from actors.nn.feedback_layers import FeedbackMatrix, use_feedback
from actors.reach import ReachConfig, ReachRule


class FeedbackConfig(ReachConfig):
    """Which losses train a block, and how large feedback matrices are."""

    scale: float | None = Field(default=None, gt=0)
    """Standard deviation of the feedback matrices; None: that of each layer's own initial weights."""


class FeedbackRule(ReachRule):
    """Sends credit down through the feedback matrices that a subclass makes."""

    Config: ClassVar[type[FeedbackConfig]] = FeedbackConfig  # type: ignore[assignment]

    def matrix(self, weight: Tensor, std: float, generator: Generator) -> FeedbackMatrix:
        """Return what makes the feedback matrix of a layer with this initial weight."""
        raise NotImplementedError(f"{type(self).__name__} must make feedback matrices")

    def prepare(self, body: nn.Module) -> nn.Module:
        """Turn linear and convolutional layers into feedback layers; see `use_feedback` for errors."""
        assert isinstance(body, Body) and isinstance(self.config, FeedbackConfig)
        use_feedback(body, self.matrix, self.config.scale)
        return body
