"""Small runs for tests: one place that knows a complete, fast config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from orchestrator.api import train
from orchestrator.catalog import find_catalog
from orchestrator.config import RunConfig, config_from_mapping
from orchestrator.summary import Summary

SMALL: dict[str, Any] = {
    "seed": 3,
    "data": {"name": "generated", "shape": [2, 8, 8], "classes": 4, "size": 176, "batch_size": 16},
    "network": {"name": "cnn", "channels": [6, 8, 8], "pool_after": [2], "blocks": 3},
    "rule": {"name": "local"},
    "objective": {"name": "cross_entropy"},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "training": {"epochs": 2},
    "placement": {"backend": "in_process", "deadline_s": 60},
}


class Replacing(dict[str, Any]):
    """A section that takes the place of SMALL's instead of being merged into it."""


def config_of(folder: Path, **sections: Any) -> RunConfig:
    """Return SMALL with sections merged in; a mapping is merged key by key unless it is Replacing."""
    raw = copy.deepcopy(SMALL)
    for name, value in sections.items():
        merges = isinstance(value, dict) and not isinstance(value, Replacing)
        raw[name] = {**raw.get(name, {}), **value} if merges else value
    raw["run_dir"] = str(folder)
    return config_from_mapping(raw, find_catalog())


def run(folder: Path, *, cluster: Any = None, **sections: Any) -> Summary:
    """Train SMALL with changes; over Ray if a cluster is given."""
    if cluster is not None:
        sections["placement"] = {"backend": "ray", **sections.get("placement", {})}
    return train(config_of(folder, **sections), progress=False, cluster=cluster)


def block_weights(summary: Summary) -> list[tuple[str, str]]:
    """Return the digests of every block's body and auxiliary parts."""
    return [(block["weights_sha256"], block["auxiliary_sha256"]) for block in summary.blocks]


def assert_balanced(summary: Summary) -> None:
    """Check that every message of every edge is in exactly one state, and that nothing else was ever reported."""
    assert not [event for event in summary.events if event["event"] == "imbalance"]
    for edge in summary.edges:
        parts = edge["trained"] + edge["buffered"] + edge["in_flight"] + sum(edge["dropped"].values()) + edge["lost"]
        assert parts == edge["sent"] and edge["lost"] == 0, edge
