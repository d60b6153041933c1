"""How far `unlocked plan` is from what is then measured: two CNNs in two blocks, and chains of simulated devices.

    python -m tests.benchmarks.plan_accuracy [--case NAME ...] [--same-node socket] [--rounds 2] [--seconds 5]
        [--batches 60] [--json]

Each case is planned and trained over Ray on the same machine by turns, with a plan at either end: the machine's own
speed differs by a third between minutes. Medians of both are compared. The measured time per batch is the last
block's, over the stretch of batches that the run's own timeline shows. Devices are simulated by sleeping
(`sleeping.py`), the rest is the real system. Every measurement is appended to results/plan_accuracy.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.methods_results import FOLDER
from tests.benchmarks.methods_runs import commit, surroundings
from tests.benchmarks.overlap import forward_steps
from tests.benchmarks.sleeping import UNITS

ROOT = Path(__file__).parents[2]
NETWORKS = {
    "large CNN, 2 blocks": ("fashion_mnist_cnn_large.yaml", []),
    "small CNN, 2 blocks": ("fashion_mnist_cnn_small.yaml", ["network.blocks=2"]),
}
DEVICES: Mapping[str, tuple[int, float, float]] = {
    "8 simulated devices": (8, 20.0, 60.0),
    "16 simulated devices": (16, 20.0, 60.0),
}
"""(blocks, forward in ms, backward in ms)."""


def config_of(case: str, batches: int, folder: str, same_node: str) -> Any:
    """Return the run of a case."""
    from orchestrator.catalog import find_catalog
    from orchestrator.config import config_from_mapping, load_config

    if case in NETWORKS:
        file, overrides = NETWORKS[case]
        files = [ROOT / "configs" / file, ROOT / "configs/methods/dgl.yaml"]
        short = [f"run_dir={folder}/run", f"data.limit={128 * batches}", "training.epochs=1"]
        short += ["evaluation.every_epochs=0", "evaluation.splits=[]", f"placement.same_node={same_node}"]
        return load_config(files, [*short, *overrides], find_catalog())
    blocks, forward_ms, backward_ms = DEVICES[case]
    os.environ["SLEEPING"] = f"{blocks} {forward_ms} {backward_ms}"
    raw = {
        "run_dir": f"{folder}/run",
        "data": {
            "name": "generated", "shape": [1, 2, 2], "classes": UNITS,
            "size": 2 * batches, "test_size": 2, "batch_size": 2,
        },
        "network": {"factory": "tests.benchmarks.sleeping:build", "blocks": blocks},
        "rule": {"name": "local"},
        "training": {"epochs": 1},
        "evaluation": {"every_epochs": 0, "splits": []},
        "placement": {"cpus_per_block": 0.01, "same_node": same_node},
    }  # fmt: skip
    return config_from_mapping(raw, find_catalog())


def measured_step_s(folder: str, block: str) -> float:
    """Return the time per batch of a block over the first stretch of batches in a run's timeline."""
    steps = forward_steps(json.loads(Path(folder, "run", "timeline.json").read_text()))
    begins = {batch: begin for (name, batch), (begin, _) in steps.items() if name == block}
    stretch = [batch for batch in sorted(begins) if batch - min(begins) < 21]
    return (begins[stretch[-1]] - begins[stretch[0]]) / (stretch[-1] - stretch[0])


def measure(case: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Plan a run and train it by turns, ending with a plan as it began; return the medians of both."""
    from orchestrator.api import train
    from orchestrator.plan_command import plan_run

    load = os.getloadavg()[0]
    plans: list[dict[str, Any]] = []
    measured_s: list[float] = []
    while len(measured_s) < arguments.rounds:
        with tempfile.TemporaryDirectory(prefix="plan-") as folder:
            config = config_of(case, arguments.batches, folder, arguments.same_node)
            plans.append(plan_run(config, seconds=arguments.seconds))
            train(config, progress=False)
            measured_s.append(measured_step_s(folder, plans[-1]["blocks"][-1]["name"]))
    plans.append(plan_run(config, seconds=arguments.seconds))
    predicted_s, taken_s = median(plan["predicted_step_s"] for plan in plans), median(measured_s)
    return {
        "case": case,
        "same_node": arguments.same_node,
        "predicted_samples_per_s": plans[0]["batch_size"] / predicted_s,
        "measured_samples_per_s": plans[0]["batch_size"] / taken_s,
        "predicted_step_s": predicted_s,
        "measured_step_s": taken_s,
        "predicted_over_measured": taken_s / predicted_s,
        "plans_step_s": [plan["predicted_step_s"] for plan in plans],
        "runs_step_s": measured_s,
        "blocks_step_s": [block["step_s"] for block in plans[0]["blocks"]],
        "load_before": load,
    }


def main() -> None:
    """Print every case as a line, or all as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = [*NETWORKS, *DEVICES]
    parser.add_argument("--case", choices=cases, nargs="+", default=cases)
    parser.add_argument("--same-node", choices=("object_store", "socket"), default="object_store")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = []
    for case in arguments.case:
        results.append(measure(case, arguments) | {"commit": commit()} | surroundings())
        with (FOLDER / "plan_accuracy.jsonl").open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        if not arguments.json:
            print(row(results[-1]), flush=True)
    if arguments.json:
        print(json.dumps({"cases": results}))


def row(result: Mapping[str, Any]) -> str:
    """Return a line of the table."""
    return (
        f"{result['case']:24} {result['same_node']:12} predicted {result['predicted_samples_per_s']:8.1f} samples/s, "
        f"measured {result['measured_samples_per_s']:8.1f}, ratio {result['predicted_over_measured']:.3f}"
    )


if __name__ == "__main__":
    main()
