"""Direct random target projection: the labels stand for the error (Frenkel et al. 2021, arXiv:1909.01311)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot

from actors.learning_rule import Pass, RuleConfig, Sent
from actors.needs import Needs, Place
from actors.nn.direct_feedback import DirectFeedbackConfig, DirectFeedbackRule


class Drtp(DirectFeedbackRule):
    """Each block is credited with a fixed random projection of the labels; nothing ever flows backwards.

    Of the cross-entropy's error (softmax - target) / B only the part that needs no forward pass is kept,
    -target / B, so that a hidden block is done with a batch at once. The last block follows its own loss.
    """

    paper = "Frenkel, Lefebvre, Bol 2021, arXiv:1909.01311"
    removes_locks = ("update", "backward")

    class Config(DirectFeedbackConfig):
        """Where the feedback matrices stand, and how large their entries are."""

    @classmethod
    def needs(cls, config: RuleConfig, place: Place) -> Needs:
        """Labels only; the last block is the only one with a loss."""
        return Needs(fields=frozenset({"labels"}), objective=place.is_last)

    def now(self, p: Pass, credit: Tensor | None) -> Sent:
        """Follow the labels, the last layer the loss's gradient `credit` [B, C], and pass the activation on."""
        target = one_hot(p.batch.labels, self.num_classes)
        self.follow(p, -target.to(p.h.dtype) / len(target), exact=credit)
        return Sent(complete=True)
