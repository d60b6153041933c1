"""The contract of an objective: what a block optimises.

An objective is a module: its auxiliary head, decoder or predictor are sub-modules, trained by the
optimizer group `heads`. One file in `actors/objectives/` is one objective.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from actors.learning_rule import Batch
from actors.needs import Place


class ObjectiveConfig(BaseModel):
    """Base of an objective's own settings; its defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Objective(nn.Module):
    """Base of all objectives; the class docstring's first line is shown by `unlocked methods`.

    Args:
        config: the objective's settings.
        place: which block this is.
        shape: shape of one sample of the body's output, without the batch dimension.
        num_classes: number of classes of the data.
    """

    paper: ClassVar[str] = ""
    needs_labels: ClassVar[bool] = True

    class Config(ObjectiveConfig):
        """No settings."""

    def __init__(self, config: ObjectiveConfig, place: Place, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.place = place

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        """Return the loss, a scalar, of the body's output h [B, ...]."""
        raise NotImplementedError(f"{type(self).__name__} must return a loss")

    def evaluate(self, h: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return sums over the batch, each a scalar; `num_samples` is added by the block."""
        raise NotImplementedError(f"{type(self).__name__} must return sums to evaluate")
