"""AugLocal: a block's auxiliary network is made like the network above it (Ma et al. 2024, 2402.17318)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from actors.learning_rule import Around, Batch
from actors.needs import Place
from actors.nn.sampled_layers import SampledHead
from actors.scored import ScoredObjective, way_up


class AugLocal(ScoredObjective):
    """Cross-entropy through a copy of some of the layers above the block; the higher the block, the fewer."""

    paper = "Ma et al. 2024, arXiv:2402.17318"

    class Config(ScoredObjective.Config):
        """How many layers are copied."""

        depth: int = Field(default=2, ge=1)
        """Hidden layers of the first block's auxiliary network, as the authors have for a ResNet-32."""
        tau: float = Field(default=0.5, ge=0, le=1)
        """How far the depth falls up to the last block but one: 0 not at all, 1 down to one layer."""

    def __init__(self, config: Config, place: Place, around: Around) -> None:
        super().__init__(config, place, around)
        self.head = nn.Identity()
        if not place.is_last:
            depth = pyramid_depth(config.depth, config.tau, way_up(place))
            self.head = SampledHead(around.later, around.shape, around.num_classes, depth)

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the batch; h [B, ...], labels [B]."""
        if self.place.is_last:
            return super().forward(h, batch)
        return functional.cross_entropy(self.head(h, batch.batch_id).float(), batch.labels)


def pyramid_depth(depth: int, tau: float, way_up: float) -> int:
    """Return the depth of the auxiliary network of a block; `way_up` is 0 at the first, 1 at the last but one."""
    return max(1, round((1 - tau * way_up) * depth + tau * way_up))
