"""CIFAR-10: 50000 + 10000 colour photographs, 32 x 32. Read from `data.root`, else downloaded once into the
cache; either way torchvision verifies the files' checksums before it unpickles them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from actors.datasets.dataset import DataSpec, Split
from actors.datasets.download import downloaded
from actors.errors import UserError

NUM_CLASSES = 10
SHAPE = (3, 32, 32)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
AUGMENT = ("crop:4", "flip")
OPTIONS: dict[str, Any] = {}

ADVICE = "set data.root to a folder that holds cifar-10-batches-py"


def load(spec: DataSpec, train: bool) -> Split:
    """uint8 [50000 or 10000, 3, 32, 32]; UserError if files are missing, broken or cannot be downloaded."""
    from torchvision.datasets import CIFAR10

    if spec.root is None:
        root = downloaded("cifar10", lambda folder: CIFAR10(folder, download=True), CIFAR10.url, ADVICE)
    else:
        root = Path(spec.root).expanduser()
        root = root.parent if root.name == CIFAR10.base_folder else root
    try:
        dataset = CIFAR10(root, train=train)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"data.root: got {root}, expected a folder that holds an intact {CIFAR10.base_folder}; {ADVICE}, "
            "or unset it to download."
        ) from error
    return Split(
        name="train" if train else "test",
        num_classes=NUM_CLASSES,
        origin=f"data.name cifar10 in {root}",
        inputs=torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor(dataset.targets, dtype=torch.int64),
        mean=MEAN,
        std=STD,
        augment=AUGMENT,
    )
