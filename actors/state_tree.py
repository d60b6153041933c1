"""Nested state as named tensors plus JSON, and back; nothing is ever pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_TENSOR = "$tensor"
_ITEMS = "$items"
"""Marks a mapping whose keys are not strings (torch's optimizer states are keyed by integers)."""


def flatten(tree: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split a tree of mappings, lists, scalars and tensors into tensors by path and JSON.

    Raises:
        TypeError: a leaf is neither a tensor nor a JSON scalar.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _split(tree, path, tensors)


def _split(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach()
        return {_TENSOR: path}
    if isinstance(tree, Mapping):
        if all(isinstance(key, str) for key in tree):
            return {key: _split(value, f"{path}/{key}", tensors) for key, value in tree.items()}
        return {_ITEMS: [[key, _split(value, f"{path}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return [_split(value, f"{path}/{index}", tensors) for index, value in enumerate(tree)]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"state at {path!r} is a {type(tree).__name__}, expected a tensor or a JSON value")


def unflatten(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """Put the tensors back into the JSON that `flatten` made."""
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensors[tree[_TENSOR]]
        if _ITEMS in tree:
            return {key: unflatten(tensors, value) for key, value in tree[_ITEMS]}
        return {key: unflatten(tensors, value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unflatten(tensors, value) for value in tree]
    return tree


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU copies that share no memory with each other or with the originals."""
    return {name: torch.empty_like(t, device="cpu").copy_(t).contiguous() for name, t in tensors.items()}
