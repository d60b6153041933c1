"""From a `DataSpec` to the splits of a run: finds the dataset's file by listing this folder, loads both
halves, applies `limit` and `validation`, and refuses what could not train."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from types import ModuleType

import torch

import actors.datasets
from actors.datasets.dataset import Data, DataSpec, Split
from actors.datasets.factory import load_from_factory
from actors.datasets.randomness import seeded_globals
from actors.errors import UserError
from actors.seeds import seed_of


def dataset_names() -> list[str]:
    """The names `data.name` accepts: every module of this folder with a `load`."""
    return [name for name in _module_names() if hasattr(_module(name), "load")]


def dataset_options() -> dict[str, tuple[str, ...]]:
    """The options of every dataset, by its name."""
    return {name: tuple(_module(name).OPTIONS) for name in dataset_names()}


def load_data(spec: DataSpec) -> Data:
    """Load, limit and split the dataset that `spec` names.

    Raises UserError for an unknown dataset or option, files that are not there, a label outside the classes,
    a limit, validation or batch size that leaves nothing to train on.
    """
    _check_numbers(spec)
    if (spec.name is None) == (spec.factory is None):
        raise UserError(
            f"data.name and data.factory: got {spec.name!r} and {spec.factory!r}, expected exactly one; set "
            f"data.name to one of {', '.join(dataset_names())}, or data.factory to package.module:function."
        )
    train, test = _load_halves(spec)
    for split in (train, test):
        if len(split) == 0:
            raise UserError(f"{split.origin}: the {split.name} split has 0 samples, expected at least 1.")
        split.check_labels()
    with seeded_globals(seed_of("load", spec.seed)):
        input_shape, test_shape = train.input_shape, test.input_shape
    if input_shape != test_shape:
        raise UserError(
            f"{test.origin}: test samples have shape {test_shape}, expected {input_shape} like "
            "the training samples; resize them alike."
        )
    train, validation = _hold_out(_limited(train, spec), spec)
    if spec.batch_size > len(train):
        raise UserError(
            f"data.batch_size: got {spec.batch_size}, expected at most the {len(train)} training samples; "
            "lower it, or raise data.limit."
        )
    name = spec.name or str(spec.factory)
    return Data(name, train, validation, test, train.num_classes, input_shape)


def _check_numbers(spec: DataSpec) -> None:
    for key, value, least in (
        ("limit", spec.limit, 1),
        ("batch_size", spec.batch_size, 1),
        ("workers", spec.workers, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"data.{key}: got {value}, expected {least} or more; raise it.")
    held_out = spec.validation
    if not 0 <= held_out < float("inf") or (held_out >= 1 and held_out != int(held_out)):
        raise UserError(
            f"data.validation: got {held_out}, expected a fraction of the training samples below 1 "
            "or a whole number of samples; use 0 for none."
        )


def _load_halves(spec: DataSpec) -> tuple[Split, Split]:
    load = load_from_factory if spec.name is None else _dataset(spec.name, spec).load
    halves = []
    for train in (True, False):
        # One seed for both calls: a factory that splits at random gets the same split twice.
        with seeded_globals(seed_of("load", spec.seed)):
            halves.append(load(spec, train=train))
    return halves[0], halves[1]


def _dataset(name: str, spec: DataSpec) -> ModuleType:
    known = dataset_names()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        advice = f"did you mean {near[0]}?" if near else "or set data.factory to load your own."
        raise UserError(f"data.name: got {name!r}, expected one of {', '.join(known)}; {advice}")
    module = _module(name)
    for option in spec.options:
        if option not in module.OPTIONS:
            options = ", ".join(module.OPTIONS) or "none"
            raise UserError(
                f"data.options.{option}: got an option that {name} does not have, "
                f"expected one of: {options}; remove it."
            )
    return module


def _limited(train: Split, spec: DataSpec) -> Split:
    if spec.limit is None or spec.limit >= len(train):
        return train
    order = torch.randperm(len(train), generator=_generator("limit", spec.seed))
    return train.choose(train.name, train.sample_ids[order[: spec.limit]])


def _hold_out(train: Split, spec: DataSpec) -> tuple[Split, Split | None]:
    if spec.validation == 0:
        return train, None
    held_out = int(spec.validation) if spec.validation >= 1 else max(1, round(spec.validation * len(train)))
    if held_out >= len(train):
        raise UserError(
            f"data.validation: got {spec.validation} ({held_out} samples), expected fewer than the "
            f"{len(train)} training samples; lower it, or raise data.limit."
        )
    order = torch.randperm(len(train), generator=_generator("validation", spec.seed))
    kept, held = train.sample_ids[order[:-held_out]], train.sample_ids[order[-held_out:]]
    return train.choose("train", kept), train.choose("validation", held)


def _generator(purpose: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(purpose, seed))


def _module_names() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(actors.datasets.__path__))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"actors.datasets.{name}")
