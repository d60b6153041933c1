"""What a dataset is: the plain values that select one (`DataSpec`), labelled samples held as tensors or
behind a map-style dataset (`Split`), and the splits of a run (`Data`). Nothing here draws a random number."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from actors.errors import UserError


@dataclass(frozen=True)
class DataSpec:
    """The `data` section of a config, as plain picklable values.

    name        a dataset of this folder; or else
    factory     "package.module:function", called with train=True/False (and root, if it takes one)
    root        folder to read instead of the usual places
    limit       at most this many training samples, drawn by `seed`
    validation  held out of the training samples, after limit: a fraction below 1 or a number of samples
    batch_size  samples per training batch; the last batch of an epoch may be smaller
    workers     processes that prepare batches; 0 prepares them in the caller
    augment     True: the dataset's default; a list: names of `actors.datasets.augmentations`
    options     what only one dataset knows, such as image_size: its OPTIONS lists them with their defaults
    """

    name: str | None = None
    factory: str | None = None
    root: str | None = None
    limit: int | None = None
    validation: float = 0.0
    batch_size: int = 128
    workers: int = 0
    augment: bool | Sequence[str] = False
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


class MapDataset(Protocol):
    """Items are (image, label): a tensor [C, H, W] (uint8 or floating) or a PIL image, and an integer."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled samples: either `inputs` and `labels`, or `dataset`; `sample_ids` says which of them belong.

    inputs is uint8 (0..255) or float32 [N, C, H, W], labels int64 [N]. `mean` and `std` are per channel, for
    pixels in 0..1; empty means no normalisation. `augment` is what `data.augment: true` stands for. `origin`
    is the setting a user would look at when a sample is bad.
    """

    name: str
    num_classes: int
    origin: str
    inputs: Tensor | None = None
    labels: Tensor | None = None
    dataset: MapDataset | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: tuple[str, ...] = ()
    chosen: Tensor | None = None

    def __len__(self) -> int:
        return self.num_stored if self.chosen is None else len(self.chosen)

    @property
    def num_stored(self) -> int:
        """Samples in the storage, chosen or not."""
        if self.inputs is not None:
            return len(self.inputs)
        assert self.dataset is not None
        return len(self.dataset)

    @property
    def sample_ids(self) -> Tensor:
        """Positions in the storage of this split's samples: int64 [N], ascending."""
        return torch.arange(self.num_stored) if self.chosen is None else self.chosen

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W); reads one sample of a map-style dataset, and raises UserError if it is no image."""
        if self.inputs is not None:
            return tuple(self.inputs.shape[1:])
        return tuple(self._item(int(self.sample_ids[0]))[0].shape)

    def choose(self, name: str, sample_ids: Tensor) -> Split:
        """The same storage under another name, restricted to `sample_ids`."""
        return replace(self, name=name, chosen=sample_ids.sort().values)

    def check_labels(self) -> None:
        """UserError at the first label in memory outside the classes; map-style ones are checked as read."""
        if self.labels is None:
            return
        bad = ((self.labels < 0) | (self.labels >= self.num_classes)).nonzero()
        if len(bad):
            raise self._bad_label(int(bad[0, 0]), int(self.labels[bad[0, 0]]))

    def read(self, sample_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, C, H, W] as stored and labels int64 [B]; UserError for a sample that cannot be used."""
        if self.inputs is not None and self.labels is not None:
            return self.inputs[sample_ids], self.labels[sample_ids]
        images, labels = zip(*(self._item(index) for index in sample_ids.tolist()), strict=True)
        for index, image in zip(sample_ids.tolist(), images, strict=True):
            if image.shape != images[0].shape or image.dtype != images[0].dtype:
                raise self._bad_sample(
                    index,
                    f"{image.dtype} {list(image.shape)}",
                    f"{images[0].dtype} {list(images[0].shape)} like its batch",
                )
        return torch.stack(images), torch.tensor(labels, dtype=torch.int64)

    def normalise(self, raw: Tensor) -> Tensor:
        """float32 [B, C, H, W]: uint8 is scaled to 0..1, then each channel gets (x - mean) / std."""
        scale = 255.0 if raw.dtype == torch.uint8 else 1.0
        images = raw.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if not self.mean:
            return images.div_(scale)
        mean, std = (torch.tensor(values).view(-1, 1, 1) * scale for values in (self.mean, self.std))
        return images.sub_(mean).div_(std)

    def _item(self, index: int) -> tuple[Tensor, int]:
        assert self.dataset is not None
        try:
            item = self.dataset[index]
        except OSError as error:
            raise self._bad_sample(index, f"{type(error).__name__}: {error}", "a readable file") from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise self._bad_sample(index, type(item).__name__, "a pair (image, label)")
        image, label = item
        try:
            label = operator.index(label)
        except TypeError:
            raise self._bad_sample(index, f"a label of type {type(label).__name__}", "an integer label") from None
        if not 0 <= label < self.num_classes:
            raise self._bad_label(index, label)
        return self._tensor(index, image), label

    def _tensor(self, index: int, image: object) -> Tensor:
        if isinstance(image, Image.Image):
            pixels = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"))
            return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
        if not isinstance(image, Tensor):
            raise self._bad_sample(index, type(image).__name__, "a tensor or a PIL image")
        if image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise self._bad_sample(index, f"{image.dtype} {list(image.shape)}", "a uint8 or floating tensor [C, H, W]")
        return image.detach().as_subclass(Tensor)

    def _bad_sample(self, index: int, got: str, expected: str) -> UserError:
        return UserError(
            f"{self.origin}: sample {index} of the {self.name} split is {got}, expected {expected}; "
            "correct the dataset."
        )

    def _bad_label(self, index: int, label: int) -> UserError:
        return UserError(
            f"{self.origin}: sample {index} of the {self.name} split has label {label}, "
            f"expected 0..{self.num_classes - 1}; correct the label or the number of classes."
        )


@dataclass(frozen=True, eq=False)
class Data:
    """The splits of a run; train and validation are disjoint parts of one storage. input_shape: (C, H, W)."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    num_classes: int
    input_shape: tuple[int, ...]
