"""InfoPro: a block keeps what is needed to draw the input again (Wang et al. 2021, 2101.10832)."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from actors.learning_rule import Around, Batch
from actors.needs import Place
from actors.nn.auxiliary_head import HeadConfig, auxiliary_head
from actors.nn.decoder import Pixels, decoder
from actors.scored import ScoredObjective, way_up

Weight = Annotated[float, Field(ge=0)]


class InfoPro(ScoredObjective):
    """Reconstruction of the network's input plus cross-entropy, so that early blocks throw less away."""

    paper = "Wang et al. 2021, arXiv:2101.10832"
    fields = frozenset({"labels", "raw_input"})

    class Config(ScoredObjective.Config):
        """Weights of the two losses at the first block and at the last but one; blocks between interpolate.

        The defaults are the authors' for a ResNet-110 on SVHN in 16 blocks.
        """

        lambda1: tuple[Weight, Weight] = (5.0, 0.5)
        """Weights of the reconstruction's binary cross-entropy, a mean over pixels."""
        lambda2: tuple[Weight, Weight] = (0.2, 1.0)
        """Weights of the cross-entropy with the labels."""
        head: HeadConfig = HeadConfig()
        """The head that gives the cross-entropy."""

        @model_validator(mode="after")
        def _has_a_loss(self) -> Self:
            if any(a == b == 0 for a, b in zip(self.lambda1, self.lambda2, strict=True)):
                raise ValueError("expected lambda1 or lambda2 above 0 at either end")
            return self

    def __init__(self, config: Config, place: Place, around: Around) -> None:
        super().__init__(config, place, around)
        self.lambda1 = _between(config.lambda1, way_up(place))
        self.lambda2 = _between(config.lambda2, way_up(place))
        # The head comes first: its initial weights are then those it would have alone.
        self.head = nn.Identity() if place.is_last else auxiliary_head(config.head, around.shape, around.num_classes)
        self.decoder: nn.Module | None = None
        if not place.is_last and self.lambda1 > 0:
            self.decoder = decoder(around.shape, around.raw_shape)
            self.pixels = Pixels(around.mean, around.std, len(around.raw_shape))

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        """Return lambda1 reconstruction + lambda2 cross-entropy; the last block has cross-entropy alone."""
        if self.place.is_last:
            return super().forward(h, batch)
        if self.decoder is None:
            return self.lambda2 * super().forward(h, batch)
        reconstruction = self.lambda1 * self.reconstruction_loss(h, batch.raw_input)
        if self.lambda2 == 0:
            return reconstruction
        return reconstruction + self.lambda2 * super().forward(h, batch)

    def reconstruction_loss(self, h: Tensor, raw: Tensor) -> Tensor:
        """Return the binary cross-entropy of the decoded h [B, ...] with the pixels of the input raw [B, C, ...]."""
        assert self.decoder is not None, "lambda1 is 0 or this is the last block"
        return functional.binary_cross_entropy_with_logits(self.decoder(h).float(), self.pixels(raw))


def _between(ends: tuple[float, float], fraction: float) -> float:
    return ends[0] + fraction * (ends[1] - ends[0])
