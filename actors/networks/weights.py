"""Digests of weights, so that two runs can be compared without moving a tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def tensor_digests(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 over dtype, shape and bytes of every tensor, by name."""
    return {name: _digest(tensor) for name, tensor in state.items()}


def _digest(tensor: Tensor) -> str:
    tensor = tensor.detach().cpu().contiguous()
    content = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    content.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
