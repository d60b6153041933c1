"""The peers of tests/benchmarks/peers.py on a network small enough for a test; importable, as ranks are processes."""

from __future__ import annotations

from tests.benchmarks.peers_ddp import DataParallel
from tests.benchmarks.peers_pipelining import Pipeline
from tests.benchmarks.peers_work import Work, config_of, first_losses

SMALL = ("network.channels=[4,6,8,8]", "data.limit=1280", "data.batch_size=64")
NO_BATCH_NORM = (*SMALL, "network.batch_norm=false", "optimizer.lr=0.2")
"""Batch norm takes its statistics from what a rank or a micro-batch sees, so with it no peer equals another."""
COUNT = 12


def losses_on_a_rank() -> dict[str, list[float | None]]:
    """Return this rank's losses under data parallelism and under both pipelines."""
    kinds = {
        "ddp": DataParallel,
        "gpipe": lambda work: Pipeline(work, "gpipe", 4),
        "1f1b": lambda work: Pipeline(work, "1f1b", 4),
    }
    found = {}
    for name, make in kinds.items():
        work = Work(config_of("cnn", NO_BATCH_NORM))
        found[name] = first_losses(make(work), work, COUNT)
    return found
