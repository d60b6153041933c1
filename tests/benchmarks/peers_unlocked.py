"""Arm: our own run of the same training, decoupled greedy learning, blocks as actors over Ray or in one process."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.api import train
from orchestrator.summary import Summary
from tests.benchmarks.overlap import Starts, forward_steps
from tests.benchmarks.peers_work import KEEP_EVERY, config_of

NUM_TRACED_FROM = 20
"""The timeline keeps batches from this one on and the last ones: the time between them is the steady state."""


def measure(job: argparse.Namespace, *, in_process: bool) -> dict[str, Any]:
    """Train and return samples/s in the steady state, and where the time of every block went."""
    num_batches = NUM_TRACED_FROM + job.steps
    own = [f"data.limit={num_batches * 128}"]
    if job.weights:
        own = [f"checkpoint.every_batches={KEEP_EVERY}", "checkpoint.keep=999"]
    backend = ["placement.backend=in_process"] if in_process else []
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        directory = Path(folder, "run")
        config = config_of(job.network, [f"run_dir={directory}", *own, *backend, *job.overrides])
        summary = train(config, progress=False)
        starts = forward_steps(json.loads((directory / "timeline.json").read_text()))
        if job.weights:
            shutil.copytree(directory, Path(job.weights, "run"))
    last = summary.blocks[-1]["name"]
    step_s = steady_step_s(starts, last)
    return {
        "samples_per_s": config.data.batch_size / step_s,
        "step_ms": 1000 * step_s,
        "wall_s": summary.wall_s,
        "blocks": [block_facts(block, summary) for block in summary.blocks],
    }


def steady_step_s(starts: Starts, block: str) -> float:
    """Return the time per batch of a block from the first batch whose spans were kept to the last, in seconds."""
    begins = {batch: begin for (name, batch), (begin, _) in starts.items() if name == block}
    first, last = min(batch for batch in begins if batch >= min(NUM_TRACED_FROM, max(begins) - 1)), max(begins)
    return (begins[last] - begins[first]) / (last - first)


def block_facts(block: Mapping[str, Any], summary: Summary) -> dict[str, Any]:
    """Return a block's shares of its time, its time per step, and its share of training since its first batch."""
    shares, uses = block["time_fraction"], block["uses"]["num_uses"]
    filling = min(shares["wait_input"], block["uses"]["from_s"] / summary.wall_s)  # no batch has come yet
    training = 1 - shares["evaluate"] - shares["snapshot"] - filling
    return {
        "name": block["name"], "layers": block["layers"],
        "compute_of_training": shares["compute"] / training,
        "compute_ms": 1000 * shares["compute"] * summary.wall_s / uses,
        **shares,
    }  # fmt: skip
