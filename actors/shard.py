"""A block's snapshot on disk: one safetensors file whose header holds the rest of the state as JSON."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from actors.errors import RunError
from actors.state_tree import copied, flatten, unflatten


@dataclass(frozen=True)
class ShardFile:
    """What a manifest says of one shard. `name` is relative to the checkpoint's folder."""

    name: str
    sha256: str
    num_bytes: int


def write_shard(folder: Path, name: str, state: Any) -> ShardFile:
    """Write a state under `folder/name` by rename, so that the name never shows half a file."""
    tensors, tree = flatten(state)
    data = save(copied(tensors), metadata={"state": json.dumps(tree)})
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.partial"
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / name)
    return ShardFile(name, hashlib.sha256(data).hexdigest(), len(data))


def read_shard(folder: Path, file: ShardFile) -> Any:
    """Check a shard against its manifest entry and return its state.

    Raises:
        RunError: the file is missing, outside the folder, or not what was written.
    """
    path = folder / file.name
    if Path(file.name).name != file.name:
        raise RunError(f"shard {file.name!r}: expected a plain file name in {folder}; the manifest is refused")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"shard {path}: can't be read ({error.strerror})") from None
    if len(data) != file.num_bytes or hashlib.sha256(data).hexdigest() != file.sha256:
        raise RunError(f"shard {path}: got {len(data)} bytes that do not match the manifest's hash; it is damaged")
    try:
        with safe_open(path, framework="pt") as opened:  # type: ignore[no-untyped-call]
            tree = json.loads(opened.metadata()["state"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"shard {path}: not a snapshot of a block ({error})") from None
    return unflatten(tensors, tree)
