"""MNIST: 60000 + 10000 handwritten digits, 28 x 28 grey. Read from `data.root` (idx files, plain or gzipped),
else downloaded once into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.datasets.dataset import DataSpec, Split
from actors.datasets.download import downloaded
from actors.datasets.idx import has_idx_files, read_idx_split
from actors.errors import UserError

NUM_CLASSES = 10
SHAPE = (1, 28, 28)
MEAN, STD = (0.1307,), (0.3081,)
AUGMENT = ("crop:2",)
OPTIONS: dict[str, Any] = {}

ADVICE = "set data.root to a folder with the four idx files"


def load(spec: DataSpec, train: bool) -> Split:
    """uint8 [60000 or 10000, 1, 28, 28]; UserError if files are missing, broken or cannot be downloaded."""
    folder = _folder(spec)
    images, labels = read_idx_split(folder, train, SHAPE)
    return Split(
        name="train" if train else "test",
        num_classes=NUM_CLASSES,
        origin=f"data.name mnist in {folder}",
        inputs=images,
        labels=labels,
        mean=MEAN,
        std=STD,
        augment=AUGMENT,
    )


def _folder(spec: DataSpec) -> Path:
    if spec.root is not None:
        root = Path(spec.root).expanduser()
        for folder in (root, root / "MNIST" / "raw"):
            if has_idx_files(folder):
                return folder
        raise UserError(
            f"data.root: got {root}, expected a folder with MNIST's four idx files "
            f"(train-images-idx3-ubyte.gz, ...); {ADVICE}, or unset it to download."
        )
    from torchvision.datasets import MNIST

    fetched = downloaded("mnist", lambda folder: MNIST(folder, download=True), MNIST.mirrors[0], ADVICE)
    return fetched / "MNIST" / "raw"
