"""Finds rules and objectives: a file in the plug-in's folder, or `package.module:Class` of the user's."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

import actors.objectives
import actors.rules
from actors.errors import UserError
from actors.learning_rule import LearningRule
from actors.objective import Objective

_FOLDERS: dict[str, tuple[Any, type]] = {
    "rule": (actors.rules, LearningRule),
    "objective": (actors.objectives, Objective),
}


def plugin_names(kind: str) -> list[str]:
    """Return the names in a plug-in folder; kind is `rule` or `objective`."""
    folder, _ = _FOLDERS[kind]
    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__))


def find_plugin(kind: str, name: str) -> type:
    """Return the class in the plug-in file `name`.

    Raises:
        UserError: no such file, or the file does not hold exactly one class of that kind.
    """
    folder, base = _FOLDERS[kind]
    names = plugin_names(kind)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
            f"{kind}.name: got {name!r}, expected one of {', '.join(names)}; {hint}use one of them or {kind}.factory"
        )
    module = importlib.import_module(f"{folder.__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(
            f"{kind}.name: {module.__name__} holds {len(found)} classes of {base.__name__}, expected one; "
            f"keep one class per file"
        )
    return found[0]


def import_plugin(kind: str, path: str) -> type:
    """Return the class that `package.module:Class` names.

    Raises:
        UserError: the path is malformed, does not import, or is not a class of that kind.
    """
    _, base = _FOLDERS[kind]
    module_name, _, attribute = path.partition(":")
    if not attribute:
        raise UserError(f"{kind}.factory: got {path!r}, expected package.module:Class; name the class after a colon")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the user's module raises
        raise UserError(
            f"{kind}.factory: {path!r} does not import ({type(error).__name__}: {error}); check the name and PYTHONPATH"
        ) from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(
            f"{kind}.factory: {path!r} is {found!r}, expected a subclass of {base.__module__}.{base.__name__}; "
            f"name a class"
        )
    return found


def plugin_class(kind: str, *, name: str | None, factory: str | None) -> type:
    """Return the plug-in class that a config section names, by `name` or by `factory`."""
    if factory is not None:
        return import_plugin(kind, factory)
    if name is None:
        raise UserError(f"{kind}: got neither name nor factory, expected one; set {kind}.name")
    return find_plugin(kind, name)
