"""A classification set made from a seed, for tests and dry runs: each class has a random prototype and its
samples are that prototype under noise, so even a linear model learns it and nothing has to be on disk."""

from __future__ import annotations

from typing import Any

import torch

from actors.datasets.dataset import DataSpec, Split
from actors.errors import UserError
from actors.seeds import seed_of

NUM_CLASSES = 10
SHAPE = (1, 8, 8)
MEAN, STD = (), ()
AUGMENT = ()
OPTIONS: dict[str, Any] = {
    "shape": SHAPE,
    "classes": NUM_CLASSES,
    "size": 1024,
    "test_size": 256,
    "noise": 2.0,
}


def load(spec: DataSpec, train: bool) -> Split:
    """float32 [size or test_size, *shape] of unit variance, classes as even as the size allows.

    Options: shape (C, H, W), classes, size and test_size in samples, noise as a multiple of the prototypes'
    spread. Raises UserError for values that make no dataset.
    """
    options = {**OPTIONS, **spec.options}
    _check(options)
    shape, num_classes = tuple(options["shape"]), options["classes"]
    size, noise = options["size" if train else "test_size"], float(options["noise"])
    prototypes = torch.randn(num_classes, *shape, generator=_generator("prototypes", spec))
    generator = _generator("train" if train else "test", spec)
    labels = (torch.arange(size) % num_classes)[torch.randperm(size, generator=generator)]
    inputs = prototypes[labels] + noise * torch.randn(size, *shape, generator=generator)
    return Split(
        name="train" if train else "test",
        num_classes=num_classes,
        origin="data.name generated",
        inputs=inputs / (1 + noise**2) ** 0.5,
        labels=labels,
    )


def _check(options: dict[str, Any]) -> None:
    shape = options["shape"]
    if not isinstance(shape, (list, tuple)) or len(shape) != 3 or not all(_is_count(size) for size in shape):
        raise UserError(f"data.options.shape: got {shape}, expected three positive numbers; write [C, H, W].")
    for key in ("classes", "size", "test_size"):
        if not _is_count(options[key]):
            raise UserError(f"data.options.{key}: got {options[key]!r}, expected 1 or more; raise it.")
    if not isinstance(options["noise"], (int, float)) or options["noise"] < 0:
        raise UserError(f"data.options.noise: got {options['noise']!r}, expected 0 or more; raise it.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def _generator(purpose: str, spec: DataSpec) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of("generated", purpose, spec.seed))
