"""Labels written into images: the first pixels of the first channel hold one value per class
(Hinton 2022, 2212.13345, section 3.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def num_label_pixels(shape: tuple[int, ...]) -> int:
    """Return how many classes a sample of this shape can hold: the pixels of one channel."""
    return math.prod(shape[1:] or shape)


@dataclass(frozen=True)
class LabelPixels:
    """Writes labels into images.

    Args:
        num_classes: how many pixels a label takes.
        on: value of the label's own pixel as a pixel of the image before it was normalised; the others are 0.
        mean: what normalising takes off the first channel.
        std: what it divides by.
    """

    num_classes: int
    on: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def with_labels(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return a copy of x [B, ...] that carries the labels, int64 [B], as one-hot pixels."""
        return self._written(x, functional.one_hot(labels, self.num_classes).to(x.dtype))

    def with_no_label(self, x: Tensor) -> Tensor:
        """Return a copy of x [B, ...] whose label pixels say every class by 1 / num_classes."""
        return self._written(x, x.new_full((1, self.num_classes), 1 / self.num_classes))

    def _written(self, x: Tensor, shares: Tensor) -> Tensor:
        """Copy x and put the classes' shares [B or 1, num_classes] in front of its first channel."""
        written = x.clone()
        channel = written[:, 0] if x.dim() > 2 else written
        plane = channel.flatten(1).clone()  # a channel's pixels need not lie side by side in memory
        plane[:, : self.num_classes] = (self.on * shares - self.mean) / self.std
        channel.copy_(plane.view(channel.shape))
        return written


def wrong_labels(labels: Tensor, num_classes: int, seed: int) -> Tensor:
    """Return a label for each sample, int64 [B], drawn evenly among all but its own."""
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randint(1, num_classes, labels.shape, generator=generator)
    return (labels + offset.to(labels.device)) % num_classes
