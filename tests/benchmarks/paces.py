"""What a run's summary says of paces: updates and distinct samples per second of each block, and staleness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.summary import Summary


def block_paces(summary: Summary, batch_size: int) -> list[dict[str, float]]:
    """Return for each block, from its first use to its last:

    `updates_per_s` (one update per use: local rules), `distinct_samples_per_s` (batches that it trained on for the
    first time, times their size), and `compute_s`: computing per use, simulated slowness included.
    """
    return [_block(block, summary.wall_s, batch_size) for block in summary.blocks]


def _block(block: Mapping[str, Any], wall_s: float, batch_size: int) -> dict[str, float]:
    uses = block["uses"]
    per_s = (uses["num_uses"] - 1) / max(uses["to_s"] - uses["from_s"], 1e-9)
    return {
        "updates_per_s": round(per_s, 3),
        "distinct_samples_per_s": round(per_s * batch_size * uses["num_batches"] / uses["num_uses"], 1),
        "compute_s": round(block["time_fraction"]["compute"] * wall_s / uses["num_uses"], 5),
        **uses,
    }


def edge_staleness(summary: Summary) -> dict[str, dict[str, Any]]:
    """Return mean, p99, max and bound of every edge between blocks, and how many messages it dropped."""
    return {
        edge["name"]: {
            **{name: edge["staleness"][name] for name in ("mean", "p99", "max", "bound")},
            "dropped": sum(edge["dropped"].values()),
        }
        for edge in summary.edges
        if is_between_blocks(edge["name"])
    }


def is_between_blocks(edge: str) -> bool:
    """Whether activations go along an edge from block to block."""
    return edge.startswith("block") and ":" not in edge


def is_balanced(edge: Mapping[str, Any]) -> bool:
    """Whether every message of an edge is in exactly one state and none is lost."""
    known = edge["trained"] + edge["buffered"] + edge["in_flight"] + sum(edge["dropped"].values())
    return known == edge["sent"] and edge["lost"] == 0
