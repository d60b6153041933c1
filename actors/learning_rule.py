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
from actors.networks.layer import Layer


@dataclass(frozen=True)
class Batch:
    """What a block knows of one batch besides its input.

    `fields` holds what travels with the activation, `labels`, int64 [B], and `raw_input`, the network's
    input [B, ...], if the block declared that it needs it.
    """

    batch_id: int
    version: int
    fields: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def labels(self) -> Tensor:
        """The class of each sample, int64 [B]."""
        return self.fields["labels"]

    @property
    def raw_input(self) -> Tensor:
        """What the network's first layer gets, [B, ...]."""
        return self.fields["raw_input"]


class Pass(Protocol):
    """One batch in one block. The block makes, keeps and closes it."""

    batch: Batch
    h: Tensor
    """Output of the body, detached, [B, ...]."""
    kept: dict[str, Tensor]
    """What the rule remembers of this batch between its calls; part of a snapshot."""
    answered: set[int]
    """Origins whose feedback for this batch has come, the one being handled included."""

    def vjp(
        self, credit: Tensor, *, weights: bool, input: bool, keep: bool = False,
        inside: Mapping[str, Tensor] | None = None,
    ) -> Tensor | None:  # fmt: skip
        """Pull `credit` (shape of `h`) back through the body.

        Args:
            credit: gradient, or a stand-in for it, at `h`.
            weights: add to the gradients of the body's parameters.
            input: return the gradient at the body's input.
            keep: another call for this batch follows.
            inside: the credit at the output of each of the body's severed layers, by layer name.
        """
        ...


@dataclass(frozen=True)
class Sent:
    """What a rule sends after a step.

    Args:
        up: activation for the next block, [B, ...]; the block fills it in from the rule's `leave`.
        down: one message per origin: name -> tensor, by the index of the block whose loss or error it is.
        complete: the batch's last credit has come, so the block may update its weights.
        taught: the rule's own parameters have their gradient for this batch and may be updated.
    """

    up: Tensor | None = None
    down: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    complete: bool = False
    taught: bool = False


@dataclass(frozen=True)
class Around:
    """What a rule or objective is built to fit.

    Args:
        shape: of one sample of the body's output, without the batch dimension.
        num_classes: of the data.
        body_input_shape: of one sample of the body's input.
        raw_shape: of one sample of the network's input.
        mean: of the raw input's channels before it was normalised; empty if it was not.
        std: of the raw input's channels before it was normalised.
        later: the network's layers above this block, in order.
    """

    shape: tuple[int, ...]
    num_classes: int
    body_input_shape: tuple[int, ...] = ()
    raw_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    later: tuple[Layer, ...] = ()


class RuleConfig(BaseModel):
    """Base of a rule's own settings; its defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LearningRule(nn.Module):
    """Base of all rules; the class docstring's first line is shown by `unlocked methods`.

    Args:
        config: the rule's settings.
        place: which block this is.
        around: what it must fit.
    """

    paper: ClassVar[str] = ""
    """Authors, year and arXiv id."""
    removes_locks: ClassVar[tuple[str, ...]] = ()
    """Which of `forward`, `update`, `backward` the rule removes (Jaderberg et al. 2017, 1608.05343)."""
    no_export: ClassVar[str] = ""
    """Why the trained layers alone do not make a network that can be exported; empty if they do."""
    fewest_blocks: ClassVar[int] = 1
    """How many blocks the rule needs at least."""

    class Config(RuleConfig):
        """No settings."""

    def __init__(self, config: RuleConfig, place: Place, around: Around) -> None:
        super().__init__()
        self.config = config
        self.place = place

    @classmethod
    def needs(cls, config: RuleConfig, place: Place) -> Needs:
        """Declare what must flow to the block at `place`."""
        raise NotImplementedError(f"{cls.__name__} must say what it needs")

    @classmethod
    def locks_removed(cls, config: RuleConfig) -> tuple[str, ...]:
        """Return the locks that the rule removes with these settings."""
        return cls.removes_locks

    @classmethod
    def cut_matters(cls, config: RuleConfig) -> str:
        """Return why other cuts would train other weights, as what follows the rule's name; empty if they don't."""
        return "has losses or parameters of its own at every block"

    @classmethod
    def streams(cls, config: RuleConfig, num_classes: int) -> tuple[int, int]:
        """Return how many times each sample travels from block to block, in training and in an evaluation."""
        return 1, 1

    def prepare(self, body: nn.Module) -> nn.Module:
        """Return the body to train; a rule may swap layers here."""
        return body

    def enter(self, received: Tensor, batch: Batch) -> Tensor:
        """Return what the body runs on in training, from what drives the block; default: just that."""
        return received

    def enter_evaluation(self, received: Tensor) -> Tensor:
        """Return what the body runs on in an evaluation; default: what was received."""
        return received

    def leave(self, h: Tensor) -> Tensor:
        """Return what the next block gets, from the body's output h [B, ...]; default: just that.

        It is sent before the rule's `now`, in evaluations too.
        """
        return h

    def vote(self, h: Tensor) -> Tensor | None:
        """Return the block's votes in an evaluation, [B, num_classes]; None: its objective's scores vote."""
        return None

    def now(self, p: Pass, credit: Tensor | None) -> Sent:
        """Handle a batch right after its forward pass; `credit` is the objective's gradient at `p.h`."""
        raise NotImplementedError(f"{type(self).__name__} must handle a batch")

    def later(self, p: Pass, origin: int, tensors: Mapping[str, Tensor]) -> Sent:
        """Handle feedback for the batch of `p` from the block with index `origin`."""
        raise NotImplementedError(f"{type(self).__name__} declared feedback but does not handle it")

    def late_activation(self, p: Pass, h: Tensor) -> Sent:
        """Handle the predecessor's activation h [B, ...] of a batch that the raw input has driven."""
        raise NotImplementedError(f"{type(self).__name__} is driven by the raw input but does not handle activations")
