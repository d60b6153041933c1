"""What the system itself costs: CPU per message and hop by size, daemons, orchestrator, reports, trace, checkpoints.

    python -m tests.benchmarks.overhead [--sizes 0.01,0.1,1,4,16,64] [--blocks 4] [--no-checkpoints] [--json]

A chain of simulated devices (`simulated_network.py`) computes nothing: all CPU of its processes is the system's. Every
figure is a difference between a long run and a short one in the same processes, so that start and end cancel out.
Beside it stand the floors of `floors.py`. What reports and the trace cost is measured by themselves, checkpoints on
the large Fashion-MNIST CNN with one every 50 batches.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.floors import floors
from tests.benchmarks.methods_results import FOLDER
from tests.benchmarks.methods_runs import ROOT, commit, surroundings
from tests.benchmarks.processes import command, cpu_s, descendants
from tests.benchmarks.simulated_devices import measure
from tests.benchmarks.simulated_network import describe
from tests.benchmarks.trace_cost import STEP_S, step_ns

SHORT = 30
WAYS = ("object_store", "socket")
"""Of `placement.same_node`."""
REPORTS = 200
EVERY = 50
"""Batches between checkpoints."""
TARGETS = {"orchestrator": 0.02, "reports": 0.01, "trace": 0.01, "checkpoints": 0.03}
"""Of one core; of a block's CPU seconds."""


def compute_ms(size_mb: float) -> float:
    """Return how long a device rests, so long that the processor is never full."""
    return 20 + 5 * size_mb


def cpu_by_kind() -> dict[str, float]:
    """Return the CPU seconds so far of actors, Ray's daemons and this process, the orchestrator."""
    found = {"actors": 0.0, "daemons": 0.0, "orchestrator": time.process_time()}
    for pid in descendants(os.getpid()):
        found["actors" if command(pid).startswith("ray::RayHost") else "daemons"] += cpu_s(pid)
    return found


def per_message(size_mb: float, same_node: str, blocks: int, cluster: Any, folder: Path) -> dict[str, Any]:
    """Return CPU milliseconds per message and hop, and shares, for one size of message and way to travel."""
    describe(folder / "network", blocks, compute_ms(size_mb), size_mb * 2**20)
    long = SHORT + int(max(30, min(400, 10_000 / compute_ms(size_mb))))
    spent, wall = [], []
    for steps in (SHORT, SHORT, long):  # the first one warms up
        chosen = argparse.Namespace(
            blocks=blocks, compute_ms=compute_ms(size_mb), message_mb=size_mb, steps=steps, same_node=same_node
        )
        before = cpu_by_kind()
        wall.append(measure(chosen, "local", 0, cluster)["wall_s"])
        after = cpu_by_kind()
        spent.append({kind: after[kind] - before[kind] for kind in before})
    cpu = {kind: spent[2][kind] - spent[1][kind] for kind in spent[2]}
    seconds = wall[2] - wall[1]
    return {
        "message_mb": size_mb,
        "same_node": same_node,
        "cpu_ms": 1000 * cpu["actors"] / (long - SHORT) / blocks,
        "with_daemons_ms": 1000 * (cpu["actors"] + cpu["daemons"]) / (long - SHORT) / blocks,
        "daemons_of_cpu": cpu["daemons"] / sum(cpu.values()),
        "orchestrator_of_core": cpu["orchestrator"] / seconds,
    }


def report_share(cluster: Any) -> float:
    """Return the CPU that reports cost a block at one per second, as a share of one core."""
    import ray

    host = cluster._spare[1]
    pid = ray.get(host.report.remote())["pid"]
    before = cpu_s(pid)
    for _ in range(REPORTS):
        ray.get(host.report.remote())
    return (cpu_s(pid) - before) / REPORTS


def checkpoint_share(cluster: Any) -> dict[str, float]:
    """Train the large CNN with and without checkpoints; return what they add to the CPU, and the pause."""
    from orchestrator.api import train
    from orchestrator.catalog import find_catalog
    from orchestrator.config import load_config

    files = [ROOT / "configs/fashion_mnist_cnn_large.yaml", ROOT / "configs/methods/dgl.yaml"]
    shared = [
        f"data.limit={128 * (2 * EVERY + 20)}",
        "training.epochs=1",
        "evaluation.every_epochs=0",
        "evaluation.splits=[]",
    ]
    spent: dict[str, float] = {}
    snapshot_s = step_s = 0.0
    for name, own in (
        ("warm", ["data.limit=1280"]),
        ("off", ["recovery.mode=none", "checkpoint.every_s=0"]),
        ("on", [f"checkpoint.every_batches={EVERY}"]),
    ):
        with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
            config = load_config(files, [f"run_dir={folder}/run", *shared, *own], find_catalog())
            before = cpu_by_kind()["actors"]
            summary = train(config, progress=False, cluster=cluster)
            spent[name] = cpu_by_kind()["actors"] - before
        snapshot_s = max(block["time_fraction"]["snapshot"] for block in summary.blocks) * summary.wall_s
        step_s = summary.wall_s / (2 * EVERY + 20)
    return {
        "share": spent["on"] / spent["off"] - 1,
        "pause_s": snapshot_s / 3,
        "longest_pause_s": snapshot_s,  # at most: all snapshots of the busiest block together
        "step_s": step_s,
    }


def trace_share() -> float:
    """Return what the trace adds to a step of 5 ms while it keeps every span."""
    return (step_ns([range(-1, 0), range(2000)]) - step_ns(None)) / 1e9 / STEP_S


def main() -> None:
    """Print the measurement as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.01,0.1,1,4,16,64")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--no-checkpoints", dest="checkpoints", action="store_false")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sizes = [float(size) for size in arguments.sizes.split(",")]
    least = {size: floors(int(size * 2**20)) for size in sizes}
    with tempfile.TemporaryDirectory(prefix="devices-") as name:
        os.environ["SIMULATED"] = str(Path(name, "network"))
        from orchestrator.cluster.ray_cluster import RayCluster

        cluster = RayCluster(object_store_bytes=3 * 1024**3, keep=True)
        rows = [
            per_message(size, way, arguments.blocks, cluster, Path(name)) | least[size]
            for size in sizes
            for way in WAYS
        ]
        result: dict[str, Any] = {
            "messages": rows,
            "orchestrator_of_core": max(row["orchestrator_of_core"] for row in rows),
            "reports_of_block": report_share(cluster),
            "trace_of_block": trace_share(),
            "checkpoints": checkpoint_share(cluster) if arguments.checkpoints else None,
        }
    result |= {"load": os.getloadavg()[0], "commit": commit()} | surroundings()
    with (FOLDER / "overhead.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result) if arguments.json else table(result))


def table(result: Mapping[str, Any]) -> str:
    """Return the measurement as text."""
    lines = [
        "   size MB   through      CPU ms per message and hop (with daemons)  memcpy    pipe    gloo   daemons' share"
    ]
    for row in result["messages"]:
        lines.append(
            f"{row['message_mb']:10.2f}   {row['same_node']:12}"
            f"{row['cpu_ms']:8.2f} ({row['with_daemons_ms']:.2f}){'':24}"
            f"{row['memcpy_ms']:8.3f}{row['pipe_ms']:8.3f}{row['gloo_ms']:8.3f}{100 * row['daemons_of_cpu']:10.1f} %"
        )
    lines += [
        f"orchestrator {100 * result['orchestrator_of_core']:.2f} % of a core",
        f"reports {100 * result['reports_of_block']:.2f} % of a block, trace {100 * result['trace_of_block']:.2f} %",
    ]
    if (saved := result["checkpoints"]) is not None:
        lines.append(
            f"a checkpoint every {EVERY} batches {100 * saved['share']:.1f} % of the blocks' CPU (at most 3), "
            f"its pause {1000 * saved['pause_s']:.1f} ms, at most {1000 * saved['longest_pause_s']:.1f} ms, "
            f"in a step of {1000 * saved['step_s']:.0f} ms"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
