"""How soon the death of a block is noticed, and how soon another life of it trains: cold, and with a warm spare.

    python tests/benchmarks/recovery_speed.py [--kills 5] [--json]

Two blocks of a few megabytes, one thread each; SIGKILL of first and last by turns while the run trains. `noticed`:
until the loss is recorded; `trains`: until the next life begins its first step, both from the signal on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from orchestrator.cluster.ray_cluster import RayCluster  # noqa: E402
from orchestrator.config import RunConfig  # noqa: E402
from orchestrator.control import ask  # noqa: E402
from tests.benchmarks import kills  # noqa: E402
from tests.benchmarks.fault_runs import Running, disturbed  # noqa: E402
from tests.benchmarks.methods_results import FOLDER  # noqa: E402
from tests.benchmarks.methods_runs import commit, surroundings  # noqa: E402

RESULTS = FOLDER / "recovery_speed.jsonl"
BETWEEN_S = 9.0
"""So that a new spare has started before the next kill."""


def config(folder: Path, spares: int) -> RunConfig:
    """Return a run that would train for ever."""
    data = {"name": "generated", "shape": [2, 16, 16], "classes": 4, "size": 1760, "batch_size": 16}
    sections: Mapping[str, Any] = {
        "data": data, "network": {"name": "mlp", "widths": [1024, 1024], "blocks": 2},
        "training": {"epochs": 10_000}, "evaluation": {"every_epochs": 0}, "checkpoint": {"every_batches": 100},
        "recovery": {"max_failures": 1000, "spares": spares},
    }  # fmt: skip
    return kills.config(folder, "dgl", sections)


def measured(spares: int, num_kills: int) -> dict[str, Any]:
    """Kill blocks of one run and return when each was noticed and trained again."""

    def act(run: Running) -> None:
        for number in range(num_kills):
            threading.Event().wait(BETWEEN_S)
            actor = f"block{number % 2}"
            known = run.num_lost(actor)
            run.signal(actor, signal.SIGKILL)
            run.watch_recovery(actor, known)
        run.told.done.clear()
        ask(run.folder, ["stop"])

    summary, told = disturbed(lambda folder: config(folder, spares), 50, act, RayCluster(object_store_bytes=10**9))
    back = [event["after_s"] for event in summary.events if event["event"] == "recovered"]
    return {"spares": spares, "noticed_s": told.detected_s, "back_s": back, "trains_s": told.trains_s}


def main() -> int:
    """Measure both and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--spares", type=int, action="append", help="0, 1 or both")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for spares in arguments.spares or (0, 1):
        found = measured(spares, arguments.kills)
        line = found | {"load": os.getloadavg(), "commit": commit()} | surroundings()
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if arguments.json:
            print(json.dumps(line), flush=True)
            continue
        print(f"{spares} spares, {len(found['trains_s'])} kills:", flush=True)
        for key in ("noticed_s", "trains_s"):
            values = found[key] or [float("nan")]
            print(f"  {key}: median {statistics.median(values):.3f}, slowest {max(values):.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
