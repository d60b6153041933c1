"""Direct feedback alignment: one output error, sent to all blocks at once (Nøkland 2016, arXiv:1609.01596)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from actors.learning_rule import Pass, RuleConfig, Sent
from actors.needs import Feedback, Needs, Place
from actors.nn.direct_feedback import DirectFeedbackConfig, DirectFeedbackRule


class DirectFeedbackAlignment(DirectFeedbackRule):
    """Each block receives the network's output error and maps it onto its output by a fixed random matrix.

    One message [B, C] from the last block goes to every other one, none of which waits for another's
    backward pass. The last block follows the exact gradient of its own loss.
    """

    paper = "Nøkland 2016, arXiv:1609.01596; Launay et al. 2020, arXiv:2006.12878"
    removes_locks = ("backward",)

    class Config(DirectFeedbackConfig):
        """Where the feedback matrices stand, and how large their entries are."""

    @classmethod
    def needs(cls, config: RuleConfig, place: Place) -> Needs:
        """Every block but the last gets the error of the last block, the only one with a loss."""
        return Needs(
            feedback=Feedback.NONE if place.is_last else Feedback.LAST_BLOCK,
            origins=() if place.is_last else (place.num_blocks - 1,),
            fields=frozenset({"labels"}),
            objective=place.is_last,
        )

    def now(self, p: Pass, credit: Tensor | None) -> Sent:
        """Send the error dL/dscores [B, C] to all blocks and follow it, in the last block; else wait for it."""
        if not self.place.is_last:
            return Sent()
        assert credit is not None, "the last block has the loss"
        self.follow(p, credit, exact=credit)
        return Sent(down={self.place.index: {"error": credit}}, complete=True)

    def later(self, p: Pass, origin: int, tensors: Mapping[str, Tensor]) -> Sent:
        """Follow the output error of the batch."""
        self.follow(p, tensors["error"])
        return Sent(complete=True)
