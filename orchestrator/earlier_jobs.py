"""What `metrics.jsonl` says of the jobs before this one: a run is all of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_KINDS = (b'{"kind": "event"', b'{"kind": "evaluation"')
"""How the lines begin that are read; most others are reports."""


@dataclass
class EarlierJobs:
    """The events of earlier jobs, oldest first, each with the time since its job began, and their evaluations."""

    events: list[dict[str, Any]] = field(default_factory=list)
    evaluations: set[tuple[Any, ...]] = field(default_factory=set)

    @property
    def restarts(self) -> Counter[str]:
        """How many lives of every actor have taken the place of another."""
        return Counter(event["actor"] for event in self.events if event["event"] == "recovered")


def evaluation_key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what no other evaluation has, of a line of the file: one that is repeated is done at another moment."""
    return line["block"], line["split"], line["batch"], line["at_s"]


def read_earlier_jobs(jsonl: Path) -> EarlierJobs:
    """Return what the file holds; a line that was cut off when its writer died is cut away."""
    found = EarlierJobs()
    if not jsonl.exists():
        return found
    with jsonl.open("rb+") as file:
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(whole)
                break
            whole += len(line)
            if line.startswith(_KINDS):
                with suppress(ValueError, KeyError):  # a line that the disk has damaged
                    _read(json.loads(line), found)
    return found


def _read(line: dict[str, Any], found: EarlierJobs) -> None:
    if line.pop("kind") == "event":
        found.events.append(line)
    else:
        found.evaluations.add(evaluation_key(line))
