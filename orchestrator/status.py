"""`status.json`: what `unlocked status` shows, written at most once a second."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.summary import accuracy, last_evaluation

_BLOCK = (
    "name",
    "version",
    "updates",
    "loss",
    "pid",
    "node",
    "device",
    "waiting_on",
    "waiting_s",
    "time_fraction",
)


def status_of(
    state: str,
    reports: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    num_batches: int,
    batches_per_epoch: int,
    reason: str | None,
) -> dict[str, Any]:
    """Return the status of a run from its actors' newest reports."""
    blocks = [reports[name] for name in names if name in reports]
    batch = blocks[-1]["version"] if blocks else 0
    edges = {
        edge: facts | {"version": report["version"]}
        for report in reports.values()
        for edge, facts in report["sends"].items()
    }
    return {
        "state": state,
        "updated_at": time.time(),
        "epoch": batch // batches_per_epoch,
        "batch": batch,
        "num_batches": num_batches,
        "test_accuracy": accuracy(last_evaluation(blocks[-1], "test")) if blocks else None,
        "blocks": [{key: block[key] for key in _BLOCK} for block in blocks],
        "edges": [{"name": edge, **facts} for edge, facts in edges.items()],
        "reason": reason,
    }
