"""How much of the time per step is compute where every block has a device of its own: the system's own cost.

    python -m tests.benchmarks.simulated_devices [--blocks 8 --compute-ms 50 --message-mb 4] [--steps 200]
        [--rule local] [--delay-per-hop 0] [--json]

Devices are simulated: each block's compute is a sleep (`simulated_network.py`), which leaves the processor free; edges,
messages, checks, actors and Ray are the real ones. Efficiency = compute time / time per step of the slowest block,
after a warm-up of 20 batches. Without options a table of four cases; beside our local rule stand locked and pipelined
back-propagation and direct feedback alignment through the same actors, and 1F1B of torch.distributed.pipelining.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.methods_results import FOLDER
from tests.benchmarks.methods_runs import commit, surroundings
from tests.benchmarks.overlap import Starts, forward_steps
from tests.benchmarks.simulated_network import BATCH_SIZE, CLASSES, units_of

WARM_UP = 20
"""Batches before the time per step is taken: the first ones that the timeline shows follow them."""

CASES = ((8, 50.0, 4.0, 0.97), (16, 50.0, 4.0, 0.95), (8, 10.0, 0.5, 0.93), (32, 200.0, 4.0, 0.98))
"""(blocks, compute in ms, message in MB, efficiency to reach)."""

ARMS: dict[str, tuple[str, float]] = {
    "local": ("local", 0),
    "backprop, locked (s=0)": ("backprop", 0),
    "backprop, pipelined (s=2)": ("backprop", 2),
    "direct feedback alignment (s=2)": ("direct_feedback_alignment", 2),
}
"""(rule, delay_per_hop)."""


def config(arguments: argparse.Namespace, rule: str, delay_per_hop: float, folder: str) -> dict[str, Any]:
    """Return the run's config."""
    objective = {"factory": "tests.benchmarks.simulated_network:DeviceLoss"} if rule == "local" else {}
    return {
        "run_dir": f"{folder}/run",
        "data": {
            "name": "generated", "shape": [1, 2, 2], "classes": CLASSES,
            "size": BATCH_SIZE * arguments.steps, "test_size": 2, "batch_size": BATCH_SIZE,
        },
        "network": {"factory": "tests.benchmarks.simulated_network:build", "blocks": arguments.blocks},
        "rule": {"name": rule},
        "objective": objective,
        "schedule": {"delay_per_hop": delay_per_hop} if delay_per_hop else {},
        "training": {"epochs": 1},
        "evaluation": {"every_epochs": 0, "splits": []},
        "placement": {"cpus_per_block": 0.01},
    }  # fmt: skip


def step_s(steps: Starts, num_blocks: int, num_batches: int) -> float:
    """Return the time per step of the slowest block, from the first batch after the warm-up to the last one."""
    last = num_batches - 1
    names = [f"block{i}" for i in range(num_blocks)]
    return max((steps[name, last][0] - steps[name, WARM_UP][0]) / (last - WARM_UP) for name in names)


def measure(arguments: argparse.Namespace, rule: str, delay_per_hop: float, cluster: Any) -> dict[str, Any]:
    """Train one arm over Ray; return its efficiency and where its blocks' time went."""
    from orchestrator.api import train

    with tempfile.TemporaryDirectory(prefix="simulated-") as folder:
        summary = train(config(arguments, rule, delay_per_hop, folder), progress=False, cluster=cluster)
        steps = forward_steps(json.loads(Path(folder, "run", "timeline.json").read_text()))
    period = step_s(steps, arguments.blocks, arguments.steps)
    shares = {
        name: round(median(block["time_fraction"][name] for block in summary.blocks), 4)
        for name in summary.blocks[0]["time_fraction"]
    }
    return {"rule": rule, "delay_per_hop": delay_per_hop, "step_ms": 1000 * period,
            "efficiency": arguments.compute_ms / 1000 / period, "time_fraction": shares}  # fmt: skip


def case(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen arm; with `beside`, the other arms too, in one cluster."""
    os.environ["SIMULATED"] = f"{arguments.blocks} {arguments.compute_ms} {units_of(arguments.message_mb * 2**20)}"
    from orchestrator.cluster.ray_cluster import RayCluster

    cluster = RayCluster(object_store_bytes=2 * 1024**3, keep=True)
    facts = {name: getattr(arguments, name) for name in ("blocks", "compute_ms", "message_mb", "steps")}
    arms = ARMS if arguments.beside else {"": (arguments.rule, arguments.delay_per_hop)}
    found = {name: measure(arguments, rule, delay, cluster) for name, (rule, delay) in arms.items()}
    first = next(iter(found.values()))
    beside = {name: arm for name, arm in found.items() if arm is not first}
    return facts | first | {"load": os.getloadavg()[0], "beside": beside}


def table(arguments: argparse.Namespace) -> None:
    """Measure the four cases, each in a process and a cluster of its own, and print a line for every arm."""
    for blocks, compute_ms, message_mb, target in CASES:
        command = [
            sys.executable, "-m", "tests.benchmarks.simulated_devices", "--json", "--beside",
            "--blocks", str(blocks), "--compute-ms", str(compute_ms), "--message-mb", str(message_mb),
            "--steps", str(arguments.steps),
        ]  # fmt: skip
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{blocks} blocks x {compute_ms:g} ms x {message_mb:g} MB", flush=True)
        print(f"  {'local':34} {found['efficiency']:.3f}  (target {target})", flush=True)
        for name, arm in found["beside"].items():
            print(f"  {name:34} {arm['efficiency']:.3f}", flush=True)


def main() -> None:
    """Print one measurement as JSON, or the table of all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--compute-ms", type=float, default=50.0)
    parser.add_argument("--message-mb", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rule", default="local")
    parser.add_argument("--delay-per-hop", type=float, default=0)
    parser.add_argument("--beside", action="store_true", help="also the other arms")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.blocks is None and not arguments.json:
        table(arguments)
        return
    arguments.blocks = arguments.blocks or CASES[0][0]
    result = case(arguments) | {"commit": commit()} | surroundings()
    with (FOLDER / "simulated_devices.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result) if arguments.json else f"efficiency {result['efficiency']:.3f}")


if __name__ == "__main__":
    main()
