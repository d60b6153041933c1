"""The file that makes a checkpoint of shards: what it says of them, under a hash of its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actors.shard import ShardFile

FORMAT = 3
"""Another one is refused: nothing vouches for what a manifest without a hash says."""


class Source(BaseModel):
    """What a manifest says of the source; whoever restores the source reads the rest."""

    model_config = ConfigDict(strict=True, extra="allow")
    orders: int = 0


class Manifest(BaseModel):
    """What stands in a manifest.

    `cut`: the names of every block's layers, empty if unknown. `shards`: one per block, first block first.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    format: int = FORMAT
    run: str | None
    position: int = Field(ge=0)
    cut: tuple[tuple[str, ...], ...]
    shards: tuple[ShardFile, ...]
    source: Source
    sha256: str = ""
    """Of the rest, as `encoded` writes it without this field."""

    def encoded(self) -> bytes:
        """Return the file: JSON, its own hash last."""
        facts: dict[str, Any] = {
            "format": self.format,
            "run": self.run,
            "position": self.position,
            "cut": self.cut,
            "shards": [asdict(shard) for shard in self.shards],
            "source": self.source.model_dump(exclude_unset=True),
        }
        digest = hashlib.sha256(json.dumps(facts, indent=1).encode()).hexdigest()
        return json.dumps({**facts, "sha256": digest}, indent=1).encode()


def decoded(data: bytes) -> Manifest:
    """Return what a manifest says, if every byte of it is what was written.

    Raises:
        ValueError: it is of another format, a field is not what it must be, or it was changed after it was written.
    """
    try:
        facts = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    held = facts.get("format") if isinstance(facts, dict) else None
    if held != FORMAT:
        raise ValueError(f"format {held}, expected {FORMAT}")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in mistake["loc"])
        raise ValueError(f"{where}: got {mistake['input']!r}, {mistake['msg'].lower()}") from None
    if manifest.encoded() != data:
        raise ValueError("it does not match its own hash")
    return manifest
