"""`status.json`: what `unlocked status` shows, written at most once a second."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

_BLOCK = (
    "name",
    "version",
    "updates",
    "loss",
    "pid",
    "node",
    "device",
    "cores",
    "waiting_on",
    "waiting_s",
    "time_fraction",
)


def status_of(
    state: str,
    reports: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    *,
    epoch: int,
    batch: int,
    num_batches: int,
    test_accuracy: float | None,
    reason: str | None,
) -> dict[str, Any]:
    """Return the status of a run from its actors' newest reports and where it is."""
    blocks = [reports[name] for name in names if name in reports]
    edges = {
        edge: facts | {"version": report["version"]}
        for report in reports.values()
        for edge, facts in report["sends"].items()
    }
    return {
        "state": state,
        "updated_at": time.time(),
        "epoch": epoch,
        "batch": batch,
        "num_batches": num_batches,
        "test_accuracy": test_accuracy,
        "blocks": [{key: block[key] for key in _BLOCK} for block in blocks],
        "edges": [{"name": edge, **facts} for edge, facts in edges.items()],
        "reason": reason,
    }
