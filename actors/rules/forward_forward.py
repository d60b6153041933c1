"""Forward-forward: two forward passes in place of a forward and a backward one (Hinton 2022, 2212.13345).

Block 0 makes three streams of every batch: *positive* images carry their true label in their first pixels,
*negative* ones a wrong label, *neutral* ones 1 / num_classes for every class. They travel as one activation
[3 B, ...] in this order; labels stay [B]. Every block but the last learns to answer strongly to positive and
weakly to negative samples, and hands on the direction of its answer only. The last block is a readout: it
sees the neutral stream and follows the objective.

An evaluation travels as [(num_classes + 1) B, ...]: the neutral stream, then every sample under label 0, 1, ...
Accuracy is the readout's. `ensemble_correct` counts the paper's other answer, the label under which the
goodness of all hidden blocks but the first (of the first, if it is the only one) adds up highest.

Unlike in the paper a sample counts as positive from a mean square of 0.1 per unit (`threshold`; there 1, the
number of units for a sum), the loss is scaled so that its gradient's length does not grow with them, and what is
handed on has a root mean square of 1 in place of a length of 1. The readout sees the highest hidden block, not
all but the first; wrong labels are drawn evenly, not by how likely the network finds them. With batch norm the
streams share their statistics. Meant for full layers: a convolution sees the label in a corner of the image only,
and its goodness hardly tells labels apart.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from actors.errors import UserError
from actors.learning_rule import Around, Batch, LearningRule, Pass, RuleConfig, Sent
from actors.needs import Needs, Place
from actors.networks.body import Body
from actors.nn.goodness import goodness, goodness_loss, length_normalised
from actors.nn.label_pixels import LabelPixels, num_label_pixels, wrong_labels
from actors.seeds import seed_of

STREAMS = 3


class ForwardForward(LearningRule):
    """Each block tells rightly from wrongly labelled images by how strongly it answers; nothing flows back."""

    paper = "Hinton 2022, arXiv:2212.13345"
    removes_locks = ("update", "backward")
    fewest_blocks = 2
    no_export = "needs label pixels in its input and length normalisation between blocks, which plain layers lack"

    class Config(LearningRule.Config):
        """What a block's goodness is, and how it is used."""

        goodness: Literal["sum", "mean"] = "sum"
        """Of a sample's squared activations; `sum` makes the logistic steeper by the number of units."""
        threshold: float = Field(default=0.1, gt=0)
        """Mean square at which a sample counts as positive with probability one half; `sum`: once per unit."""
        label_value: float = Field(default=1.0, gt=0)
        """Of a label pixel that is on, as a pixel of the image before it was normalised: 0 is black, 1 white."""
        label_votes: bool = True
        """Evaluate by goodness too, which makes an evaluation num_classes + 1 times as large."""

    def __init__(self, config: RuleConfig, place: Place, around: Around) -> None:
        super().__init__(config, place, around)
        assert isinstance(config, self.Config)
        self._settings = config
        self._num_classes = around.num_classes
        self._num_evaluated = _num_evaluated(config, around.num_classes)
        self._seed = 0
        self._pixels = LabelPixels(
            around.num_classes,
            on=config.label_value,
            mean=around.mean[0] if around.mean else 0.0,
            std=around.std[0] if around.std else 1.0,
        )
        if place.is_first:
            _check_room(around)

    @classmethod
    def needs(cls, config: RuleConfig, place: Place) -> Needs:
        """Labels, for the first block's streams and the last block's objective."""
        return Needs(fields=frozenset({"labels"}), objective=place.is_last)

    @classmethod
    def streams(cls, config: RuleConfig, num_classes: int) -> tuple[int, int]:
        """Positive, negative and neutral; an evaluation: neutral, and every label if labels are voted for."""
        assert isinstance(config, cls.Config)
        return STREAMS, _num_evaluated(config, num_classes)

    def prepare(self, body: nn.Module) -> nn.Module:
        """Take the run's seed from the body; its layers stay as they are."""
        assert isinstance(body, Body)
        self._seed = body.seed
        return body

    # ------------------------------------------------------------------ training

    def enter(self, received: Tensor, batch: Batch) -> Tensor:
        """Make the streams [3 B, ...] in the first block; keep the neutral one [B, ...] in the last."""
        if self.place.is_first:
            wrong = wrong_labels(batch.labels, self._num_classes, seed_of(self._seed, "wrong label", batch.batch_id))
            return torch.cat(
                [
                    self._pixels.with_labels(received, batch.labels),
                    self._pixels.with_labels(received, wrong),
                    self._pixels.with_no_label(received),
                ]
            )
        return received.chunk(STREAMS)[-1] if self.place.is_last else received

    def now(self, p: Pass, credit: Tensor | None) -> Sent:
        """Follow the goodness of the first two streams; in the last block follow the objective."""
        if credit is not None:
            p.vjp(credit, weights=True, input=False)
            return Sent(complete=True)
        p.vjp(self._goodness_gradient(p.h), weights=True, input=False)
        return Sent(complete=True)

    def _goodness_gradient(self, h: Tensor) -> Tensor:
        """Return the gradient of the goodness loss at h [3 B, ...]; zero for the neutral stream."""
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            positive, negative, _ = h.chunk(STREAMS)
            loss = goodness_loss(positive, negative, self._settings.goodness, self._settings.threshold)
            return torch.autograd.grad(loss, h)[0]

    # ------------------------------------------------------------------ evaluation

    def enter_evaluation(self, received: Tensor) -> Tensor:
        """Make the neutral stream and one stream per label in the first block; keep the neutral one in the last."""
        if self.place.is_first:
            return torch.cat([self._pixels.with_no_label(received), *self._under_every_label(received)])
        return received.chunk(self._num_evaluated)[0] if self.place.is_last else received

    def leave(self, h: Tensor) -> Tensor:
        """Return what the next block gets, length-normalised; the last block's scores stay as they are."""
        return h if self.place.is_last else length_normalised(h)

    def vote(self, h: Tensor) -> Tensor | None:
        """Return the goodness of each sample under each label, [B, num_classes]; the readout has no say."""
        if not self._settings.label_votes:
            return None
        if self.place.is_last:
            return torch.zeros_like(h)
        found = goodness(h, self._settings.goodness).view(self._num_evaluated, -1)[1:].T
        is_left_out = self.place.is_first and self.place.num_blocks > self.fewest_blocks
        return torch.zeros_like(found) if is_left_out else found

    def _under_every_label(self, received: Tensor) -> list[Tensor]:
        labels = torch.zeros(len(received), dtype=torch.int64, device=received.device)
        return [self._pixels.with_labels(received, labels + c) for c in range(self._num_evaluated - 1)]


def _num_evaluated(config: ForwardForward.Config, num_classes: int) -> int:
    """How many times each sample of an evaluation is run."""
    return 1 + num_classes if config.label_votes else 1


def _check_room(around: Around) -> None:
    room = num_label_pixels(around.raw_shape)
    if not 2 <= around.num_classes <= room:
        raise UserError(
            f"data: got {around.num_classes} classes and samples of shape {around.raw_shape} with rule "
            f"forward_forward, which writes a pixel per class into the first channel, expected 2 to {room} classes; "
            f"use larger images or another rule"
        )
