"""How fast a chain of simulated devices is, beside what the event model predicts.

    python -m tests.benchmarks.overlap [--blocks 4] [--forward-ms 20] [--backward-ms 40] [--batches 60] [--json]

Devices are simulated: each block sleeps for its known forward and backward time (`sleeping.py`), everything else
is the real system over Ray. The measured period is the median time per batch of the last block, from the
run's own timeline. The event model gets the nominal times and one measured figure, the time of a message: from
the end of a block's forward step to the start of the next one's where nothing overlaps (backprop, s = 0).
Each arm is a line of results/overlap.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.methods_results import FOLDER
from tests.benchmarks.methods_runs import commit, surroundings
from tests.benchmarks.sleeping import UNITS

OVERLAPPING = {"reach": 2, "losses": "every"}
ARMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "backprop s=0": ("backprop", {}, 0),
    "backprop s=1": ("backprop", {}, 1),
    "backprop s=2": ("backprop", {}, 2),
    "local": ("local", {}, 0),
    "overlapping s=0": ("backprop", OVERLAPPING, 0),
    "overlapping s=2": ("backprop", OVERLAPPING, 2),
    "direct feedback alignment s=2": ("direct_feedback_alignment", {}, 2),
    "synthetic gradients s=2": ("synthetic_gradients", {}, 2),
    "synthetic gradients and inputs s=2": ("synthetic_gradients", {"synthetic_inputs": True}, 2),
}
WIDTH = 8
"""Batches over which a slope is taken; chains alternate with a period that divides it, or nearly so."""

Starts = dict[tuple[str, int], tuple[float, float]]
"""(block, batch) -> begin and end of its forward step, in seconds."""


def train_arm(rule: str, settings: dict[str, Any], s: int, arguments: argparse.Namespace, cluster: Any) -> Starts:
    """Train one arm over Ray and return the forward steps that its timeline shows."""
    from orchestrator.api import train

    with tempfile.TemporaryDirectory() as folder:
        config: dict[str, Any] = {
            "run_dir": f"{folder}/run",
            "data": {
                "name": "generated", "shape": [1, 2, 2], "classes": UNITS,
                "size": 2 * arguments.batches, "test_size": 2, "batch_size": 2,
            },
            "network": {"factory": "tests.benchmarks.sleeping:build", "blocks": arguments.blocks},
            "rule": {"name": rule, **settings},
            "schedule": {"delay_per_hop": s} if s else {},
            "training": {"epochs": 1},
            "evaluation": {"every_epochs": 0, "splits": []},
            "placement": {"cpus_per_block": 0.1},
        }  # fmt: skip
        train(config, progress=False, cluster=cluster)
        return forward_steps(json.loads(Path(folder, "run", "timeline.json").read_text()))


def forward_steps(trace: dict[str, Any]) -> Starts:
    """Return when each block's forward steps began and ended."""
    events = trace["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    return {
        (names[e["pid"], e["tid"]], e["args"]["batch"]): (e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6)
        for e in events
        if e["name"] == "forward"
    }


def measured_period(steps: Starts, block: str) -> float:
    """Return the median time per batch of a block over the first stretch of its timeline, in seconds."""
    begins = {batch: begin for (name, batch), (begin, _) in steps.items() if name == block}
    width = min(WIDTH, len(begins) - 1)
    slopes = [(begins[t + width] - begins[t]) / width for t in begins if all(t + i in begins for i in range(width + 1))]
    return median(slopes)


def message_time(steps: Starts) -> float:
    """Return the median time between a block's forward step and the next one's of the same batch, in seconds."""
    waits = defaultdict(list)
    for (name, batch), (_, end) in steps.items():
        above = f"block{int(name.removeprefix('block')) + 1}"
        if (above, batch) in steps:
            waits[name].append(steps[above, batch][0] - end)
    return median(wait for found in waits.values() for wait in found)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every arm; return its measured and predicted period in seconds, and their ratio."""
    os.environ["SLEEPING"] = f"{arguments.blocks} {arguments.forward_ms} {arguments.backward_ms}"
    from orchestrator.cluster.ray_cluster import RayCluster
    from orchestrator.event_model import predict
    from orchestrator.timed_block import Costs

    costs = Costs(arguments.forward_ms / 1000, arguments.backward_ms / 1000, input_share=0.5, weights_share=0.5)
    cluster = RayCluster(object_store_bytes=200 * 1024**2, keep=True)
    message_s, results = 0.0, []
    for name, (rule, settings, s) in ARMS.items():
        steps = train_arm(rule, settings, s, arguments, cluster)
        if name == "backprop s=0":
            message_s = message_time(steps)
        got = measured_period(steps, f"block{arguments.blocks - 1}")
        model = {
            m: predict(rule, settings, num_blocks=arguments.blocks, delay_per_hop=s, costs=costs, message_s=m).period_s
            for m in (message_s, 0.0)
        }
        results.append(
            {
                "arm": name, "blocks": arguments.blocks, "forward_s": costs.forward, "backward_s": costs.backward,
                "batches": arguments.batches, "message_s": message_s, "measured_s": got,
                "predicted_s": model[message_s], "predicted_without_message_s": model[0.0],
                "ratio": got / model[message_s], "load": os.getloadavg()[0],
            }
        )  # fmt: skip
        save(results[-1])
        if not arguments.json:
            print(row(results[-1]), flush=True)
    return results


def save(result: dict[str, Any]) -> None:
    """Keep the measurement of an arm."""
    with (FOLDER / "overlap.jsonl").open("a") as file:
        file.write(json.dumps(result | {"commit": commit()} | surroundings()) + "\n")


def row(result: dict[str, Any]) -> str:
    """Return a line of the table."""
    return (
        f"{result['arm']:36} measured {1000 * result['measured_s']:6.1f} ms   "
        f"predicted {1000 * result['predicted_s']:6.1f} ms (without message time "
        f"{1000 * result['predicted_without_message_s']:6.1f})   ratio {result['ratio']:.3f}"
    )


def main() -> None:
    """Print the measurement as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--forward-ms", type=float, default=20.0)
    parser.add_argument("--backward-ms", type=float, default=40.0)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments)
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"devices simulated by sleeping; a message takes {1000 * results[0]['message_s']:.1f} ms")


if __name__ == "__main__":
    main()
