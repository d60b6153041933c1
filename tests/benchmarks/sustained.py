"""A run of very many small batches: does anything grow? Memory, descriptors, object store, step time.

    python -m tests.benchmarks.sustained [--batches 50000] [--blocks 2] [--json]

Real blocks of a small network on generated data, over Ray, with reports, trace and checkpoints as they are by default.
Every actor is looked at each tenth of the run; growth is from the end of the second tenth to the end of the last one.
The step times of the first and the last tenth must be within 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.benchmarks.methods_results import FOLDER
from tests.benchmarks.methods_runs import commit, surroundings
from tests.benchmarks.processes import command, descendants, memory_bytes

PARTS = 10
EPOCH_BATCHES = 500
LOOK_EVERY_S = 0.2


def config(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Return the run's config."""
    return {
        "run_dir": f"{folder}/run",
        "data": {"name": "generated", "shape": [1, 4, 4], "size": 8 * EPOCH_BATCHES, "test_size": 16, "batch_size": 8},
        "network": {"name": "mlp", "blocks": arguments.blocks, "widths": [16] * (2 * arguments.blocks - 1)},
        "rule": {"name": "backprop"},
        "schedule": {"delay_per_hop": 2},
        "optimizer": {"lr": 0.01},
        "training": {"epochs": arguments.batches // EPOCH_BATCHES},
        "evaluation": {"every_epochs": 0, "splits": []},
    }


class Watch(threading.Thread):
    """Looks at the actors' processes whenever another tenth of the run is over."""

    def __init__(self, status: Path, batches: int) -> None:
        super().__init__(daemon=True)
        self.status, self.batches = status, batches
        self.looks: list[dict[str, Any]] = []
        self.is_over = threading.Event()

    def run(self) -> None:
        """Look until told that the run is over."""
        while not self.is_over.wait(LOOK_EVERY_S):
            batch = self._batch()
            if batch >= (len(self.looks) + 1) * self.batches // PARTS - 1:
                with suppress(OSError, StopIteration):  # the run has just ended
                    self.looks.append({"batch": batch, "at_s": time.monotonic()} | look())

    def _batch(self) -> int:
        try:
            return int(json.loads(self.status.read_text())["batch"])
        except (OSError, ValueError):
            return 0


def look() -> dict[str, Any]:
    """Return memory and descriptors of actors and orchestrator, and the memory that the object store has ever used."""
    started = descendants(os.getpid())
    actors = [pid for pid in started if command(pid).startswith("ray::RayHost")]
    store = next(pid for pid in started if "raylet/raylet" in command(pid))
    facts = [memory_bytes(pid) for pid in (*actors, os.getpid())]
    return {
        "private_bytes": sum(fact["private"] for fact in facts),
        "open_files": sum(fact["open_files"] for fact in facts),
        "object_store_bytes": memory_bytes(store)["shared"],
    }


def growth(looks: list[dict[str, Any]]) -> dict[str, float]:
    """Return what has grown since the second look, and the last tenth's step time over that of the first whole one."""
    second, last = looks[1], looks[-1]
    steps = [(b["at_s"] - a["at_s"]) / (b["batch"] - a["batch"]) for a, b in pairwise(looks)]
    return {
        "private_bytes": last["private_bytes"] - second["private_bytes"],
        "open_files": last["open_files"] - second["open_files"],
        "object_store_bytes": last["object_store_bytes"] - second["object_store_bytes"],
        "first_step_ms": 1000 * steps[0],
        "last_step_ms": 1000 * steps[-1],
        "last_over_first": steps[-1] / steps[0],
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and return the looks and what has grown."""
    from orchestrator.api import train

    with tempfile.TemporaryDirectory(prefix="sustained-") as folder:
        watch = Watch(Path(folder, "run", "status.json"), arguments.batches)
        watch.start()
        try:
            summary = train(config(arguments, folder), progress=False)
        finally:
            watch.is_over.set()
            watch.join(10)
    facts: dict[str, Any] = {"batches": arguments.batches, "blocks": arguments.blocks, "wall_s": summary.wall_s}
    return facts | {"growth": growth(watch.looks), "looks": watch.looks}


def table(result: Mapping[str, Any]) -> str:
    """Return the measurement as text."""
    grown = result["growth"]
    return (
        f"{result['batches']} batches in {result['wall_s']:.0f} s: "
        f"private memory {grown['private_bytes'] / 2**20:+.1f} MB, "
        f"open files {grown['open_files']:+.0f}, object store {grown['object_store_bytes'] / 2**20:+.1f} MB, step "
        f"{grown['first_step_ms']:.2f} ms at first, {grown['last_step_ms']:.2f} ms at last "
        f"({grown['last_over_first']:.3f})"
    )


def main() -> None:
    """Print the measurement as a sentence or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=50_000)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.batches < PARTS * EPOCH_BATCHES or arguments.batches % EPOCH_BATCHES:
        parser.error(
            f"--batches: got {arguments.batches}, expected a multiple of {EPOCH_BATCHES}, at least ten of them"
        )
    result = measure(arguments) | {"load": os.getloadavg()[0], "commit": commit()} | surroundings()
    with (FOLDER / "sustained.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
