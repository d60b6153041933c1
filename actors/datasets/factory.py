"""A dataset of the user's own: `data.factory: package.module:function` is imported and called for each half.
It never looks inside the dataset beyond its length and how many classes it says it has."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from actors.datasets.dataset import DataSpec, Split
from actors.errors import UserError

OPTIONS: dict[str, Any] = {"classes": None}


def load_from_factory(spec: DataSpec, train: bool) -> Split:
    """Call the factory with train (and root, if it takes one and `data.root` is set).

    The number of classes is data.options.classes, else the dataset's `num_classes`, the length of its
    `classes`, or one more than the largest of its `targets`. Raises UserError naming data.factory if it can't
    be imported or called or returns no map-style dataset; what the factory itself raises is not caught.
    """
    for option in spec.options:
        if option not in OPTIONS:
            raise UserError(
                f"data.options.{option}: got an option that data.factory does not have, expected classes; remove it."
            )
    function = _imported(str(spec.factory))
    dataset = function(**_arguments(function, spec, train))
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or isinstance(dataset, (tuple, dict)):
        raise _wrong(spec, f"returned {type(dataset).__name__}", "a map-style dataset with __len__ and __getitem__")
    return Split(
        name="train" if train else "test",
        num_classes=_num_classes(spec, dataset),
        origin=f"data.factory {spec.factory}",
        dataset=dataset,
    )


def _imported(factory: str) -> Callable[..., Any]:
    module_name, _, function_name = factory.partition(":")
    if not module_name or not function_name:
        raise UserError(f"data.factory: got {factory!r}, expected package.module:function; write both, around a colon.")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        raise UserError(
            f"data.factory: importing {factory} raised {type(error).__name__}: {error}; expected an "
            "importable package.module:function, so check the name and PYTHONPATH."
        ) from error
    if not callable(function):
        raise UserError(f"data.factory: {factory} is {type(function).__name__}, expected a function; name a callable.")
    return function


def _arguments(function: Callable[..., Any], spec: DataSpec, train: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"train": train}
    signature = inspect.signature(function)
    takes_root = "root" in signature.parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()
    )
    if takes_root and spec.root is not None:
        arguments["root"] = spec.root
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise _wrong(
            spec, f"takes {signature} ({error})", "a function callable with train=True and train=False"
        ) from None
    return arguments


def _num_classes(spec: DataSpec, dataset: Any) -> int:
    classes: Any = spec.options.get("classes")
    if classes is None:
        classes = getattr(dataset, "num_classes", None)
    if classes is None and hasattr(dataset, "classes"):
        classes = len(dataset.classes)
    if classes is None and hasattr(dataset, "targets"):
        classes = int(max(dataset.targets)) + 1
    if not isinstance(classes, int) or classes < 1:
        raise _wrong(spec, f"says it has {classes!r} classes", "a positive number (or set data.options.classes)")
    return classes


def _wrong(spec: DataSpec, got: str, expected: str) -> UserError:
    return UserError(f"data.factory: {spec.factory} {got}, expected {expected}; change the function.")
