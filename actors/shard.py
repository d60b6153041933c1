"""A block's snapshot as one safetensors file, whose header holds the rest of the state as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from actors.errors import RunError
from actors.fail_points import NO_FAIL_POINTS, FailPoints
from actors.state_tree import copied, flatten, unflatten
from actors.storage import Storage

MAX_HEADER_BYTES = 64 * 1024**2
"""Of the names, shapes and plain values of a block."""
_HEADER_BYTES = 8
"""Of a safetensors file: the length of its header, little-endian."""


@dataclass(frozen=True)
class ShardFile:
    """What a manifest says of one shard. `name` is relative to the storage."""

    name: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Staged:
    """A copy of a state that no longer changes."""

    tensors: Mapping[str, Tensor]
    tree: Any


def stage(state: Any) -> Staged:
    """Copy a state; its owner may go on."""
    tensors, tree = flatten(state)
    return Staged(copied(tensors), tree)


def write_shard(storage: Storage, name: str, staged: Staged, points: FailPoints = NO_FAIL_POINTS) -> ShardFile:
    """Write a state under a name.

    Raises:
        OSError: it can't be written.
    """
    data = save(dict(staged.tensors), metadata={"state": json.dumps(staged.tree)})
    storage.write(name, data, points)
    points.reach("written")
    return ShardFile(name, hashlib.sha256(data).hexdigest(), len(data))


def read_shard(storage: Storage, file: ShardFile) -> Any:
    """Check a shard against its manifest entry and return its state.

    Raises:
        RunError: the file is missing, outside the storage, or not what was written.
    """
    where = f"shard {storage.address}/{file.name}"
    data = shard_bytes(storage, file)
    try:
        size = int.from_bytes(data[:_HEADER_BYTES], "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {size} bytes, expected at most {MAX_HEADER_BYTES}")
        header = json.loads(data[_HEADER_BYTES : _HEADER_BYTES + size])
        return unflatten(load(data), json.loads(header["__metadata__"]["state"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{where}: not a snapshot of a block ({error})") from None


def shard_bytes(storage: Storage, file: ShardFile) -> bytes:
    """Return the bytes of a shard that are what its manifest says.

    Raises:
        RunError: as `read_shard`.
    """
    where = f"shard {storage.address}/{file.name}"
    if file.name.startswith("/") or ".." in file.name.split("/"):
        raise RunError(f"{where}: expected a name inside the checkpoints' folder; the manifest is refused")
    try:
        data = storage.read(file.name)
    except OSError as error:
        raise RunError(f"{where}: can't be read ({error.strerror or error})") from None
    if len(data) != file.num_bytes or hashlib.sha256(data).hexdigest() != file.sha256:
        raise RunError(f"{where}: got {len(data)} bytes that do not match the manifest's hash; it is damaged")
    return data
