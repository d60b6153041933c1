"""Cross-entropy with the labels, through an auxiliary head on every block but the last."""

from __future__ import annotations

from torch import nn

from actors.learning_rule import Around
from actors.needs import Place
from actors.nn.auxiliary_head import HeadConfig, auxiliary_head
from actors.scored import ScoredObjective


class CrossEntropy(ScoredObjective):
    """Softmax cross-entropy with the labels; the last block's head is the network's own."""

    paper = "auxiliary heads: Belilovsky et al. 2020, arXiv:1901.08164"

    class Config(ScoredObjective.Config):
        """The auxiliary head that turns a block's output into class scores."""

        head: HeadConfig = HeadConfig()

    def __init__(self, config: Config, place: Place, around: Around) -> None:
        super().__init__(config, place, around)
        head = config.head
        self.head = nn.Identity() if place.is_last else auxiliary_head(head, around.shape, around.num_classes)
