"""Handwritten digits that come with scikit-learn: 1797 images, 8 x 8 grey, no download. The split into 1437
training and 360 test samples is stratified and always the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from actors.datasets.dataset import DataSpec, Split

NUM_CLASSES = 10
SHAPE = (1, 8, 8)
MEAN, STD = (0.3053,), (0.3761,)
AUGMENT = ("crop:1",)
OPTIONS: dict[str, Any] = {}


def load(spec: DataSpec, train: bool) -> Split:
    """float32 in 0..1, [1437 or 360, 1, 8, 8]; needs nothing of `spec`."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # RandomState's stream is frozen by numpy's policy, unlike that of the newer generators.
    shuffled = np.random.RandomState(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    is_test = np.arange(len(labels)) % 5 == 0
    rows = np.sort(by_class[~is_test if train else is_test])
    return Split(
        name="train" if train else "test",
        num_classes=NUM_CLASSES,
        origin="data.name digits",
        inputs=torch.from_numpy(pixels[rows] / 16).to(torch.float32).view(-1, *SHAPE),
        labels=torch.from_numpy(labels[rows]).to(torch.int64),
        mean=MEAN,
        std=STD,
        augment=AUGMENT,
    )
