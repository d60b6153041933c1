"""Batches by number: what batch b holds is a function of the data, the seed and b, so any batch can be made
at any time, by any worker, with the same bits. The order of samples depends on (seed, epoch), their
augmentation on (seed, epoch, batch id); the global random state is never left changed."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from actors.datasets.augmentations import Augmentation
from actors.datasets.dataset import Data, DataSpec, Split
from actors.datasets.randomness import seeded_globals
from actors.errors import UserError
from actors.seeds import seed_of

WORKER_TIMEOUT_S = 300


@dataclass(frozen=True, eq=False)
class Batch:
    """inputs float32 [B, C, H, W], labels and sample_ids int64 [B]: places in the split's storage."""

    batch_id: int
    inputs: Tensor
    labels: Tensor
    sample_ids: Tensor


class TrainBatches:
    """`epochs` passes over the training split, each in its own order; batch ids run through from 0.

    Raises UserError if epochs is below 1 or data.augment names something unknown.
    """

    def __init__(self, data: Data, spec: DataSpec, epochs: int) -> None:
        if epochs < 1:
            raise UserError(f"training.epochs: got {epochs}, expected 1 or more; raise it.")
        self.epochs = epochs
        self._split = data.train
        self._batch_size = spec.batch_size
        self._workers = spec.workers
        self._seed = spec.seed
        self._augmentation = _augmentation(data, spec)
        self._order: tuple[int, Tensor] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches that cover every training sample once; the last may be smaller."""
        return math.ceil(len(self._split) / self._batch_size)

    @property
    def num_batches(self) -> int:
        """Batches of all epochs."""
        return self.epochs * self.batches_per_epoch

    @property
    def last_batch_size(self) -> int:
        """Samples in the last batch of each epoch, 1..batch_size; batch norm cannot train on 1."""
        return len(self._split) - (self.batches_per_epoch - 1) * self._batch_size

    def batch(self, batch_id: int) -> Batch:
        """Batch `batch_id`; IndexError outside 0..num_batches-1, UserError for a sample it cannot use."""
        if not 0 <= batch_id < self.num_batches:
            raise IndexError(f"batch id {batch_id} is outside 0..{self.num_batches - 1}")
        epoch, place = divmod(batch_id, self.batches_per_epoch)
        order = self._order_of(epoch)[place * self._batch_size : (place + 1) * self._batch_size]
        return _read(self._split, order, batch_id, seed_of("batch", self._seed, epoch, batch_id), self._augmentation)

    def stream(self, first_batch_id: int = 0) -> Iterator[Batch]:
        """Batches first_batch_id..num_batches-1 in order, prepared ahead if there are data.workers."""
        return _stream(self, range(first_batch_id, self.num_batches), self._workers)

    def _order_of(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of("order", self._seed, epoch))
            order = self._split.sample_ids[torch.randperm(len(self._split), generator=generator)]
            self._order = epoch, order
        return self._order[1]


class EvalBatches:
    """One pass over a split in storage order, never augmented; the last batch may be smaller."""

    def __init__(self, split: Split, batch_size: int, workers: int = 0) -> None:
        self._split = split
        self._sample_ids = split.sample_ids
        self._batch_size = batch_size
        self._workers = workers

    @property
    def num_batches(self) -> int:
        """Batches that cover the split once."""
        return math.ceil(len(self._split) / self._batch_size)

    def batch(self, batch_id: int) -> Batch:
        """Batch `batch_id`; IndexError outside 0..num_batches-1, UserError for a sample it cannot use."""
        if not 0 <= batch_id < self.num_batches:
            raise IndexError(f"batch id {batch_id} is outside 0..{self.num_batches - 1}")
        sample_ids = self._sample_ids[batch_id * self._batch_size : (batch_id + 1) * self._batch_size]
        return _read(self._split, sample_ids, batch_id, seed_of("evaluate", batch_id))

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        return _stream(self, range(self.num_batches), self._workers)


class _Batches(Protocol):
    def batch(self, batch_id: int) -> Batch: ...


class _InWorker:
    """Map-style view for DataLoader, which would bury a UserError in a traceback: it travels as a value."""

    def __init__(self, batches: _Batches) -> None:
        self._batches = batches

    def __getitem__(self, batch_id: int) -> Batch | UserError:
        try:
            return self._batches.batch(batch_id)
        except UserError as error:
            return error


def _stream(batches: _Batches, batch_ids: range, workers: int) -> Iterator[Batch]:
    if workers == 0:
        yield from map(batches.batch, batch_ids)
        return
    loader = DataLoader(
        _InWorker(batches),  # pyright: ignore[reportArgumentType]
        batch_size=None,
        sampler=batch_ids,
        num_workers=workers,
        multiprocessing_context="spawn",
        timeout=WORKER_TIMEOUT_S,
        generator=torch.Generator(),  # else DataLoader draws its base seed from the global one
    )
    try:
        prepared = iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"data.workers: got {workers}, but the dataset cannot be sent to another process ({error}), "
            "expected one that can be pickled; define its classes and functions at module level, or use 0."
        ) from error
    failure: UserError | None = None
    for item in prepared:
        if isinstance(item, UserError):
            failure = item
            break
        yield item
    del prepared  # else the traceback keeps the workers, and collecting them as a cycle takes their 5 s poll
    if failure is not None:
        raise failure


def _read(
    split: Split, sample_ids: Tensor, batch_id: int, seed: int, augmentation: Augmentation | None = None
) -> Batch:
    if split.dataset is None:
        images, labels = split.read(sample_ids)
    else:
        with seeded_globals(seed_of("items", seed)):
            images, labels = split.read(sample_ids)
    if augmentation is not None:
        images = augmentation(images, seed)
    return Batch(batch_id, split.normalise(images), labels, sample_ids)


def _augmentation(data: Data, spec: DataSpec) -> Augmentation | None:
    if isinstance(spec.augment, str):
        raise UserError(f"data.augment: got {spec.augment!r}, expected true, false or a list; write [{spec.augment}].")
    if spec.augment is True and not data.train.augment:
        raise UserError(
            f"data.augment: got true, but {data.name} has no default augmentation, expected a list of names; "
            "write for example [crop:4, flip], or false."
        )
    names = data.train.augment if spec.augment is True else spec.augment or ()
    return Augmentation(names) if names else None
