"""Images of the user's own in `data.root`: train/CLASS/*.png and test/CLASS/*.png (or val/). Decoded and
resized as they are read, so `data.workers` pays here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.datasets.dataset import DataSpec, Split
from actors.errors import UserError

NUM_CLASSES = None  # the number of folders in train/
SHAPE = (3, 64, 64)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENT = ("crop:8", "flip")
OPTIONS: dict[str, Any] = {"image_size": SHAPE[1]}


def load(spec: DataSpec, train: bool) -> Split:
    """RGB [3, image_size, image_size]: shorter side resized, then the centre cut out; normalised as ImageNet.

    Option: image_size in pixels. Raises UserError if data.root or its folders are missing or empty, or if
    the test folder has other classes than the training folder.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    image_size = spec.options.get("image_size", OPTIONS["image_size"])
    if not isinstance(image_size, int) or image_size < 1:
        raise UserError(f"data.options.image_size: got {image_size!r}, expected 1 pixel or more; raise it.")
    train_folder, test_folder = _folders(spec)
    if _classes(train_folder) != _classes(test_folder):
        differing = ", ".join(sorted(set(_classes(train_folder)) ^ set(_classes(test_folder))))
        raise UserError(
            f"data.root: {train_folder} and {test_folder} do not both have {differing}, expected the same "
            "class folders in both; add or remove them."
        )
    folder = train_folder if train else test_folder
    try:
        dataset = ImageFolder(str(folder), v2.Compose([v2.Resize(image_size), v2.CenterCrop(image_size)]))
    except FileNotFoundError as error:
        raise UserError(f"data.root: {folder} cannot be used ({error}); put images into each class folder.") from error
    return Split(
        name="train" if train else "test",
        num_classes=len(dataset.classes),
        origin=f"data.root {folder}",
        dataset=dataset,
        mean=MEAN,
        std=STD,
        augment=(f"crop:{max(1, image_size // 8)}", "flip"),
    )


def _folders(spec: DataSpec) -> tuple[Path, Path]:
    if spec.root is None:
        raise UserError("data.root: got nothing, expected a folder with train/CLASS/ and test/CLASS/; set data.root.")
    root = Path(spec.root).expanduser()
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), root / "test")
    for folder in (root, root / "train", test):
        if not folder.is_dir():
            raise UserError(
                f"data.root: {folder} is not there, expected folders train/CLASS/ and test/CLASS/ in {root}; "
                "create it or correct data.root."
            )
    return root / "train", test


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
