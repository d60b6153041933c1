"""Commits and reads checkpoints: shards first, the manifest last; a reader trusts only what verifies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.errors import RunError
from actors.shard import ShardFile, read_shard

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: a folder and one shard per block, first block first."""

    folder: Path
    position: int
    shards: tuple[ShardFile, ...]

    def read(self, index: int) -> Any:
        """Return the state of the block with this index.

        Raises:
            RunError: the shard is missing or damaged.
        """
        return read_shard(self.folder, self.shards[index])


def commit(folder: Path, position: int, shards: list[ShardFile], run: str) -> Checkpoint:
    """Write the manifest of shards that are already on disk; from then on the checkpoint exists."""
    manifest = {
        "format": FORMAT,
        "run": run,
        "position": position,
        "shards": [asdict(shard) for shard in shards],
    }
    partial = folder / f".{MANIFEST}.partial"
    with open(partial, "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / MANIFEST)
    for directory in (folder, folder.parent):
        _sync(directory)
    return Checkpoint(folder, position, tuple(shards))


def newest(folder: Path) -> Checkpoint:
    """Return the committed checkpoint with the highest position.

    Raises:
        RunError: there is none.
    """
    found = [_read_manifest(path) for path in folder.glob(f"*/{MANIFEST}")]
    if not found:
        raise RunError(f"{folder}: holds no committed checkpoint; train the run first")
    return max(found, key=lambda checkpoint: checkpoint.position)


def _read_manifest(path: Path) -> Checkpoint:
    try:
        manifest: Mapping[str, Any] = json.loads(path.read_text())
        shards = tuple(ShardFile(**shard) for shard in manifest["shards"])
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, expected {FORMAT}")
        return Checkpoint(path.parent, int(manifest["position"]), shards)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not a manifest ({error})") from None


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
