"""Decoupled greedy learning: each block follows its own loss (Belilovsky et al. 2020, 1901.08164)."""

from __future__ import annotations

from torch import Tensor

from actors.learning_rule import LearningRule, Pass, RuleConfig, Sent
from actors.needs import Needs, Place


class Local(LearningRule):
    """Each block follows the gradient of its own loss; nothing ever flows backwards between blocks."""

    paper = "Belilovsky et al. 2020, arXiv:1901.08164"
    removes_locks = ("update", "backward")

    @classmethod
    def needs(cls, config: RuleConfig, place: Place) -> Needs:
        """Labels only: every block has its own objective."""
        return Needs(fields=frozenset({"labels"}))

    def now(self, p: Pass, credit: Tensor | None) -> Sent:
        """Apply the block's own credit to its weights and pass the activation on."""
        assert credit is not None, "a local rule needs an objective"
        p.vjp(credit, weights=True, input=False)
        return Sent(complete=True)
