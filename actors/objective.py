"""The contract of an objective: what a block optimises.

An objective is a module: its auxiliary head, decoder or predictor are sub-modules, trained by the
optimizer group `heads`. One file in `actors/objectives/` is one objective.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from actors.learning_rule import Around, Batch
from actors.needs import Place


class ObjectiveConfig(BaseModel):
    """Base of an objective's own settings; its defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Objective(nn.Module):
    """Base of all objectives; the class docstring's first line is shown by `unlocked methods`.

    Args:
        config: the objective's settings.
        place: which block this is.
        around: what it must fit.
    """

    paper: ClassVar[str] = ""
    fields: ClassVar[frozenset[str]] = frozenset({"labels"})
    """What it needs of a batch besides the body's output: `labels`, `raw_input`."""

    class Config(ObjectiveConfig):
        """No settings."""

    def __init__(self, config: ObjectiveConfig, place: Place, around: Around) -> None:
        super().__init__()
        self.config = config
        self.place = place

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        """Return the loss, a scalar, of the body's output h [B, ...]."""
        raise NotImplementedError(f"{type(self).__name__} must return a loss")

    def scores(self, h: Tensor) -> Tensor | None:
        """Return the class scores [B, num_classes] that the block alone would give, None if it gives none."""
        return None

    def evaluate(self, h: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return sums over the batch, each a scalar; `num_samples` is added by the block."""
        raise NotImplementedError(f"{type(self).__name__} must return sums to evaluate")
