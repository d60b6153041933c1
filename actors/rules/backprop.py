"""Back-propagation between actors: the exact gradient of the last block's loss (Rumelhart et al. 1986)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from actors.learning_rule import LearningRule, Pass, RuleConfig, Sent
from actors.needs import Feedback, Needs, Place


class Backprop(LearningRule):
    """Each block receives the gradient at its output from the next block; the reference, fully locked."""

    paper = "Rumelhart, Hinton, Williams 1986, doi:10.1038/323533a0"
    removes_locks = ()

    @classmethod
    def needs(cls, config: RuleConfig, place: Place) -> Needs:
        """The last block has the loss; every other one waits for the gradient from the next."""
        if place.is_last:
            return Needs(fields=frozenset({"labels"}))
        return Needs(
            feedback=Feedback.NEXT_BLOCK,
            origins=(place.num_blocks - 1,),
            fields=frozenset({"labels"}),
            objective=False,
        )

    def now(self, p: Pass, credit: Tensor | None) -> Sent:
        """Start the backward pass in the last block; elsewhere only pass the activation on."""
        if credit is None:
            return Sent(up=p.h)
        return self._backward(p, self.place.index, credit)

    def later(self, p: Pass, origin: int, tensors: Mapping[str, Tensor]) -> Sent:
        """Continue the backward pass with the gradient at `p.h`."""
        return self._backward(p, origin, tensors["gradient"])

    def _backward(self, p: Pass, origin: int, credit: Tensor) -> Sent:
        gradient = p.vjp(credit, weights=True, input=not self.place.is_first)
        down = {} if gradient is None else {origin: {"gradient": gradient}}
        return Sent(up=None, down=down, complete=True)
