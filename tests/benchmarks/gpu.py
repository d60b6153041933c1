"""Blocks of the large CNN on one GPU: how fast each way to hold and to connect them trains.

    python -m tests.benchmarks.gpu [--batch-size 512] [--batches 150] [--rounds 3] [--json]

One GPU computes for one block at a time, so no arm can be faster than both blocks' computing in turns: the figures show
what actors and edges cost there. Arms, by turns: decoupled greedy learning in one process; in one actor over Ray; in
two actors whose messages go through the object store, over sockets, or straight between the two processes' device
memory where NIXL is installed; and back-propagation in plain torch, whose kernels need not be deterministic as ours are
unless an arm says so. What a step computes besides is the auxiliary head. Generated images of Fashion-MNIST's shape.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from orchestrator.api import train
from tests.benchmarks.methods_runs import commit, surroundings
from tests.benchmarks.overlap import forward_steps
from tests.benchmarks.peers_backprop import Backprop
from tests.benchmarks.peers_unlocked import NUM_TRACED_FROM, block_facts, steady_step_s
from tests.benchmarks.peers_work import Work, config_of

HALVES = ("placement.backend=ray", "placement.gpus_per_block=0.5")
NOT_KEPT = ("recovery.mode=none", "checkpoint.every_s=0")
"""Nothing is kept for a block that dies. In the arms without it, all that a checkpoint does not cover is."""
ARMS: dict[str, tuple[str, ...]] = {
    "one process": ("placement.backend=in_process", "placement.gpus_per_block=1"),
    "one process, any kernels": (
        "placement.backend=in_process", "placement.gpus_per_block=1", "training.deterministic=false",
    ),
    "one actor": (*HALVES, *NOT_KEPT, "placement.blocks_per_actor=2"),
    "two actors, object store": (*HALVES, *NOT_KEPT),
    "two actors, sockets": (*HALVES, *NOT_KEPT, "placement.same_node=socket"),
    "two actors, sockets, recovery": (*HALVES, "placement.same_node=socket"),
    "two actors, rdt": (*HALVES, *NOT_KEPT, "placement.device_transport=rdt"),
}  # fmt: skip
TORCH = "back-propagation, plain torch"


def data_of(batch_size: int, batches: int) -> list[str]:
    """Return overrides by which there are so many batches."""
    size = batch_size * batches
    return [
        "data={name: generated, shape: [1, 28, 28], classes: 10, test_size: 500, "
        f"size: {size}, limit: {size}, batch_size: {batch_size}}}"
    ]


def train_blocks(overrides: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one of our arms and return samples/s in the steady state and where every block's time went."""
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        own = data_of(arguments.batch_size, NUM_TRACED_FROM + arguments.batches)
        config = config_of("cnn", [*own, f"run_dir={folder}/run", *overrides])
        summary = train(config, progress=False)
        starts = forward_steps(json.loads(Path(folder, "run/timeline.json").read_text()))
    step_s = steady_step_s(starts, summary.blocks[-1]["name"])
    return {
        "samples_per_s": arguments.batch_size / step_s,
        "compute_of_training": [block_facts(block, summary)["compute_of_training"] for block in summary.blocks],
    }


def train_torch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the same network by plain back-propagation."""
    work = Work(config_of("cnn", data_of(arguments.batch_size, NUM_TRACED_FROM + arguments.batches)))
    device = torch.device("cuda", 0)
    work.module().to(device)  # in place: the trainer's module is made of the same layers
    trainer, ends = Backprop(work), []
    for batch in work.batches():
        trainer.step(replace(batch, inputs=batch.inputs.to(device), labels=batch.labels.to(device)))
        torch.cuda.synchronize()
        ends.append(time.perf_counter())
    step_s = (ends[-1] - ends[NUM_TRACED_FROM]) / (len(ends) - 1 - NUM_TRACED_FROM)
    return {"samples_per_s": arguments.batch_size / step_s}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return every arm's rounds, their median rate, and why an arm was left out."""
    arms = dict(ARMS)
    if importlib.util.find_spec("nixl") is None:
        del arms["two actors, rdt"]
        print("two actors, rdt: left out, NIXL is not installed", file=sys.stderr)
    rounds: dict[str, list[dict[str, Any]]] = {arm: [] for arm in (TORCH, *arms)}
    for _ in range(arguments.rounds):
        for arm, found in rounds.items():
            found.append(train_torch(arguments) if arm == TORCH else train_blocks(arms[arm], arguments))
            print(f"{arm}: {found[-1]['samples_per_s']:.0f} samples/s", file=sys.stderr, flush=True)
    rates = {arm: median(one["samples_per_s"] for one in found) for arm, found in rounds.items()}
    return {
        "device": torch.cuda.get_device_name(0), "batch_size": arguments.batch_size, "samples_per_s": rates,
        "rounds": rounds, **surroundings(), "commit": commit(),
    }  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """Return the measurement for reading."""
    lines = [f"{found['device']}, batches of {found['batch_size']}"]
    for arm, rate in found["samples_per_s"].items():
        shares = found["rounds"][arm][-1].get("compute_of_training", [])
        lines.append(f"{arm:32}{rate:10.0f} samples/s" + "".join(f"{share:8.3f}" for share in shares))
    return "\n".join(lines)


def main() -> None:
    """Print the measurement as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--batches", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu: expected a CUDA device, got none; run it on a machine with a GPU")
    found = measure(arguments)
    print(json.dumps(found) if arguments.json else table(found))


if __name__ == "__main__":
    main()
