"""Fashion-MNIST: 60000 + 10000 pieces of clothing, 28 x 28 grey, in MNIST's format. Read from `data.root`,
else from where Debian's package dataset-fashion-mnist puts it, else downloaded once into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.datasets.dataset import DataSpec, Split
from actors.datasets.download import downloaded
from actors.datasets.idx import has_idx_files, read_idx_split
from actors.errors import UserError

NUM_CLASSES = 10
SHAPE = (1, 28, 28)
MEAN, STD = (0.2860,), (0.3530,)
AUGMENT = ("crop:2", "flip")
OPTIONS: dict[str, Any] = {}

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
ADVICE = "apt-get install dataset-fashion-mnist, or set data.root to a folder with the four idx files"


def load(spec: DataSpec, train: bool) -> Split:
    """uint8 [60000 or 10000, 1, 28, 28]; UserError if files are missing, broken or cannot be downloaded."""
    folder = _folder(spec)
    images, labels = read_idx_split(folder, train, SHAPE)
    return Split(
        name="train" if train else "test",
        num_classes=NUM_CLASSES,
        origin=f"data.name fashion_mnist in {folder}",
        inputs=images,
        labels=labels,
        mean=MEAN,
        std=STD,
        augment=AUGMENT,
    )


def _folder(spec: DataSpec) -> Path:
    if spec.root is not None:
        root = Path(spec.root).expanduser()
        for folder in (root, root / "FashionMNIST" / "raw"):
            if has_idx_files(folder):
                return folder
        raise UserError(
            f"data.root: got {root}, expected a folder with Fashion-MNIST's four idx files "
            f"(train-images-idx3-ubyte.gz, ...); {ADVICE}."
        )
    if has_idx_files(DEBIAN_FOLDER):
        return DEBIAN_FOLDER
    from torchvision.datasets import FashionMNIST

    mirror = FashionMNIST.mirrors[0]
    fetched = downloaded("fashion_mnist", lambda folder: FashionMNIST(folder, download=True), mirror, ADVICE)
    return fetched / "FashionMNIST" / "raw"
