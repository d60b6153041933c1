"""Exact gradients over a reach of blocks: the base of back-propagation and of all that changes only its layers.

`reach` is the number of blocks that one loss trains, its own and those below. With losses at every block,
reach 1 is decoupled greedy learning, 2 overlapping local updates (Laskin et al. 2020, 2012.03837), and all
blocks with only the last block's loss is back-propagation. `combine: farthest` is interlocking
back-propagation (Gomez et al. 2020, 2010.04116): a body follows only the farthest loss that reaches it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from actors.learning_rule import LearningRule, Pass, RuleConfig, Sent
from actors.needs import Feedback, Needs, Place


class ReachConfig(RuleConfig):
    """Which losses train a block, and how their credits are joined."""

    reach: int | None = Field(default=None, ge=1)
    """Blocks that one loss trains, its own included; None: all below it."""
    losses: Literal["last", "every"] = "last"
    """Which blocks have a loss."""
    combine: Literal["sum", "farthest"] = "sum"
    """What a body follows: the sum of all losses that reach it, or the farthest of them."""


class ReachRule(LearningRule):
    """Sends every loss's gradient down until its reach ends; one message per loss still travelling."""

    Config: ClassVar[type[ReachConfig]] = ReachConfig  # type: ignore[assignment]

    @classmethod
    def needs(cls, config: RuleConfig, place: Place) -> Needs:
        """Losses within reach above this block send their gradient by way of the next block."""
        assert isinstance(config, ReachConfig)
        origins = tuple(o for o in range(place.index + 1, place.num_blocks) if _reaches(config, o, place.index, place))
        return Needs(
            feedback=Feedback.NEXT_BLOCK if origins else Feedback.NONE,
            origins=origins,
            fields=frozenset({"labels"}),
            objective=place.is_last or config.losses == "every",
        )

    @classmethod
    def locks_removed(cls, config: RuleConfig) -> tuple[str, ...]:
        """No lock is removed, unless no gradient ever leaves its block."""
        assert isinstance(config, ReachConfig)
        return ("update", "backward") if config.reach == 1 else ()

    @classmethod
    def cut_matters(cls, config: RuleConfig) -> str:
        """With one loss, at the end, and gradients that go all the way, the cut decides who computes and not what."""
        assert isinstance(config, ReachConfig)
        is_whole = config.reach is None and config.losses == "last"
        return "" if is_whole else "has losses at every block, or gradients that do not go all the way"

    def now(self, p: Pass, credit: Tensor | None) -> Sent:
        """Start the own loss's backward pass; update at once if no other loss reaches this block."""
        if credit is None:
            return Sent(complete=not self._origins)
        own = self.place.index
        if not self._origins:
            down = self._pull(p, own, credit, weights=True)
            return Sent(down=down, complete=True)
        down = self._pull(p, own, credit, weights=False, keep=True)
        if self._settings.combine == "sum":
            p.kept["credit"] = credit
        return Sent(down=down)

    def later(self, p: Pass, origin: int, tensors: Mapping[str, Tensor]) -> Sent:
        """Pass a loss's gradient on within its reach; with the last one, follow all that came."""
        credit = tensors["gradient"]
        is_last = p.answered == set(self._origins)
        follows = self._settings.combine == "sum" or origin == self._origins[-1]
        if is_last and follows and "credit" not in p.kept:
            return Sent(down=self._pull(p, origin, credit, weights=True), complete=True)
        down = self._pull(p, origin, credit, weights=False, keep=True)
        if follows:
            p.kept["credit"] = p.kept["credit"] + credit if "credit" in p.kept else credit
        if is_last:
            p.vjp(p.kept["credit"], weights=True, input=False)
        return Sent(down=down, complete=is_last)

    @property
    def _settings(self) -> ReachConfig:
        assert isinstance(self.config, ReachConfig)
        return self.config

    @property
    def _origins(self) -> tuple[int, ...]:
        return self.needs(self.config, self.place).origins

    def _pull(
        self, p: Pass, origin: int, credit: Tensor, *, weights: bool, keep: bool = False
    ) -> dict[int, dict[str, Tensor]]:
        """Pull a loss's credit back; return the message for the block below if the loss reaches that far."""
        goes_on = not self.place.is_first and _reaches(self._settings, origin, self.place.index - 1, self.place)
        gradient = p.vjp(credit, weights=weights, input=goes_on, keep=keep) if weights or goes_on else None
        return {} if gradient is None else {origin: {"gradient": gradient}}


def _reaches(config: ReachConfig, origin: int, index: int, place: Place) -> bool:
    """Whether the loss of block `origin` comes down to block `index`."""
    is_last = origin == place.num_blocks - 1
    has_loss = config.losses == "every" or is_last
    within = config.reach is None or origin - index < config.reach
    if config.combine == "sum" or is_last:
        return has_loss and within
    # All but the last loss are the farthest one of a single block, the lowest in reach: without it, nobody follows.
    return has_loss and within and config.reach is not None and origin - config.reach + 1 >= 0
