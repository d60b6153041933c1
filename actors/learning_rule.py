"""The contract of a learning rule: how credit reaches a block.

A rule owns what the credit assignment needs (synthesizers, feedback matrices) as sub-modules, so that
device moves, optimizers and snapshots are free. It owns no optimizer and no edge, never asks who runs
it, and one file in `actors/rules/` is one rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from actors.needs import Needs, Place


@dataclass(frozen=True)
class Batch:
    """What a block knows of one batch besides its input.

    `fields` holds what travels with the activation: `labels`, int64 [B].
    """

    batch_id: int
    version: int
    fields: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def labels(self) -> Tensor:
        """The class of each sample, int64 [B]."""
        return self.fields["labels"]


class Pass(Protocol):
    """One batch in one block. The block makes, keeps and closes it."""

    batch: Batch
    h: Tensor
    """Output of the body, detached, [B, ...]."""

    def vjp(self, credit: Tensor, *, weights: bool, input: bool, keep: bool = False) -> Tensor | None:
        """Pull `credit` (shape of `h`) back through the body.

        Args:
            credit: gradient, or a stand-in for it, at `h`.
            weights: add to the gradients of the body's parameters.
            input: return the gradient at the body's input.
            keep: another call for this batch follows.
        """
        ...


@dataclass(frozen=True)
class Sent:
    """What a rule sends after a step.

    Args:
        up: activation for the next block, [B, ...].
        down: one message per origin: name -> tensor, by the index of the block whose loss or error it is.
        complete: the batch's last credit has come, so the block may update.
    """

    up: Tensor | None = None
    down: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    complete: bool = False


class RuleConfig(BaseModel):
    """Base of a rule's own settings; its defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LearningRule(nn.Module):
    """Base of all rules; the class docstring's first line is shown by `unlocked methods`."""

    paper: ClassVar[str] = ""
    """Authors, year and arXiv id."""
    removes_locks: ClassVar[tuple[str, ...]] = ()
    """Which of `forward`, `update`, `backward` the rule removes (Jaderberg et al. 2017, 1608.05343)."""

    class Config(RuleConfig):
        """No settings."""

    def __init__(self, config: RuleConfig, place: Place) -> None:
        super().__init__()
        self.config = config
        self.place = place

    @classmethod
    def needs(cls, config: RuleConfig, place: Place) -> Needs:
        """Declare what must flow to the block at `place`."""
        raise NotImplementedError(f"{cls.__name__} must say what it needs")

    def prepare(self, body: nn.Module) -> nn.Module:
        """Return the body to train; a rule may swap layers here."""
        return body

    def now(self, p: Pass, credit: Tensor | None) -> Sent:
        """Handle a batch right after its forward pass; `credit` is the objective's gradient at `p.h`."""
        raise NotImplementedError(f"{type(self).__name__} must handle a batch")

    def later(self, p: Pass, origin: int, tensors: Mapping[str, Tensor]) -> Sent:
        """Handle feedback for the batch of `p` from the block with index `origin`."""
        raise NotImplementedError(f"{type(self).__name__} declared feedback but does not handle it")
