"""8, 16 and 32 blocks over three Ray nodes of this machine, every edge from one node to another.

    python -m tests.benchmarks.many_nodes [--blocks 8 16 32] [--kilobytes 512] [--batches 48] [--json] [--save]

Devices are simulated: a block sleeps for its time (`sleeping.py`); nodes, object stores and messages are real. Each
node has an object store of its own, and block i is on node i mod 3, so every activation, and the output error that
direct feedback alignment sends to all blocks, is copied between nodes. Efficiency is the time per batch that the
event model predicts with messages that take no time, divided by the measured one. All processes share the machine's
cores, which in a cluster each node would have for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.methods_runs import commit, surroundings
from tests.benchmarks.overlap import forward_steps, measured_period

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent / "results" / "many_nodes.jsonl"
NODES = 3
BATCH_SIZE = 64
STEP_MS = {8: 60.0, 16: 120.0, 32: 240.0}
"""Computing per batch, a third of it forwards: what the messages of so many blocks leave of two cores."""
RULES: dict[str, tuple[str, int]] = {
    "local": ("local", 0),
    "direct feedback alignment": ("direct_feedback_alignment", 2),
}


def nodes() -> Any:
    """Start the nodes; their object stores hold the messages of all blocks of a node."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for index in range(NODES):
        cluster.add_node(num_cpus=8, resources={f"node{index}": 100}, object_store_memory=300 * 1024**2)
    cluster.wait_for_nodes()
    return cluster


def train_arm(rule: str, s: int, num_blocks: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one arm; return its period in seconds, the blocks' nodes and the run's wall time."""
    from orchestrator.api import train

    with tempfile.TemporaryDirectory() as folder:
        config: dict[str, Any] = {
            "run_dir": f"{folder}/run",
            "data": {
                "name": "generated", "shape": [1, 4, units(arguments) // 4], "classes": 4,
                "size": BATCH_SIZE * arguments.batches, "test_size": 2, "batch_size": BATCH_SIZE,
            },
            "network": {
                "factory": "tests.benchmarks.sleeping:build", "cuts": [f"layer{i}" for i in range(1, num_blocks)],
            },
            "rule": {"name": rule},
            "schedule": {"delay_per_hop": s} if s else {},
            "training": {"epochs": 1},
            "evaluation": {"every_epochs": 0, "splits": []},
            "placement": {
                "cpus_per_block": 0.1, "deadline_s": 120,
                "blocks": {i: {"resources": {f"node{i % NODES}": 1}} for i in range(num_blocks)},
            },
        }  # fmt: skip
        summary = train(config, progress=False)
        steps = forward_steps(json.loads(Path(folder, "run", "timeline.json").read_text()))
        status = json.loads(Path(folder, "run", "status.json").read_text())
    return {
        "period_s": measured_period(steps, f"block{num_blocks - 1}"),
        "nodes": [block["node"] for block in status["blocks"]],
        "wall_s": summary.wall_s,
        "status": summary.status,
        "bytes": sum(edge["bytes"] for edge in summary.edges),
    }


def units(arguments: argparse.Namespace) -> int:
    """Return how many numbers a sample's activation has, so that a message has the size asked for."""
    return max(4, arguments.kilobytes * 1024 // (4 * BATCH_SIZE) // 4 * 4)


def measure(num_blocks: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run both rules on nodes of their own; yield one line per rule."""
    from orchestrator.event_model import predict
    from orchestrator.timed_block import Costs

    step_ms = STEP_MS.get(num_blocks, 7.5 * num_blocks)
    os.environ["SLEEPING"] = f"{num_blocks} {step_ms / 3} {2 * step_ms / 3} {units(arguments)}"
    cluster = nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    costs = Costs(step_ms / 3000, 2 * step_ms / 3000, input_share=0.5, weights_share=0.5)
    try:
        for name, (rule, s) in RULES.items():
            started, load = time.time(), os.getloadavg()[0]
            got = train_arm(rule, s, num_blocks, arguments)
            ideal = predict(rule, num_blocks=num_blocks, delay_per_hop=s, costs=costs).period_s
            crossing = sum(a != b for a, b in zip(got["nodes"], got["nodes"][1:], strict=False))
            assert got["status"] == "completed", got["status"]
            assert crossing == num_blocks - 1, f"an edge stays on its node: {got['nodes']}"
            yield {
                    "arm": name, "blocks": num_blocks, "nodes": len(set(got["nodes"])), "crossing": crossing,
                    "kilobytes": arguments.kilobytes, "batches": arguments.batches, "status": got["status"],
                    "ideal_s": ideal, "period_s": got["period_s"], "efficiency": ideal / got["period_s"],
                    "bytes": got["bytes"], "wall_s": got["wall_s"], "started": started, "load": load,
                    "commit": commit(), **surroundings(),
            }  # fmt: skip
    finally:
        del os.environ["RAY_ADDRESS"]
        cluster.shutdown()


def row(line: dict[str, Any]) -> str:
    """Return a line of the table."""
    return (
        f"{line['blocks']:3} blocks on {line['nodes']} nodes, {line['crossing']} of {line['blocks'] - 1} edges between "
        f"nodes, {line['arm']:26} {line['kilobytes']} kB: {1000 * line['period_s']:6.1f} ms per batch, ideal "
        f"{1000 * line['ideal_s']:6.1f}, efficiency {line['efficiency']:.2f}"
    )


def main() -> None:
    """Print the measurements as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--kilobytes", type=int, default=512)
    parser.add_argument("--batches", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help=f"append to {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    for num_blocks in arguments.blocks:
        for line in measure(num_blocks, arguments):
            print(json.dumps(line) if arguments.json else row(line), flush=True)
            if arguments.save:
                with RESULTS.open("a") as results:
                    results.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
