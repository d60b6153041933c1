"""Cross-entropy with the labels, through an auxiliary head on every block but the last."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from actors.learning_rule import Around, Batch
from actors.needs import Place
from actors.nn.auxiliary_head import HeadConfig, auxiliary_head
from actors.objective import Objective


class CrossEntropy(Objective):
    """Softmax cross-entropy with the labels; the last block's head is the network's own."""

    paper = "auxiliary heads: Belilovsky et al. 2020, arXiv:1901.08164"

    class Config(Objective.Config):
        """The auxiliary head that turns a block's output into class scores."""

        head: HeadConfig = HeadConfig()

    def __init__(self, config: Config, place: Place, around: Around) -> None:
        super().__init__(config, place, around)
        head = config.head
        self.head = nn.Identity() if place.is_last else auxiliary_head(head, around.shape, around.num_classes)

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the batch; h [B, ...], labels [B]."""
        return functional.cross_entropy(self.scores(h), batch.labels)

    def scores(self, h: Tensor) -> Tensor:
        """Return the auxiliary head's class scores [B, num_classes], in fp32 so that no loss is rounded."""
        return self.head(h).float()

    def evaluate(self, h: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the summed loss and the number of correct predictions."""
        scores = self.scores(h)
        return {
            "loss": functional.cross_entropy(scores, batch.labels, reduction="sum"),
            "correct": (scores.argmax(dim=1) == batch.labels).sum(),
        }
