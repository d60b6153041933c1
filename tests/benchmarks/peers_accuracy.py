"""Time to a test accuracy, one run per arm: `python tests/benchmarks/peers.py --time-to-accuracy`.

Every arm trains for two epochs of 468 batches, with the cosine rate of the config over these, and keeps its weights
every `KEEP_EVERY` batches; afterwards, off the clock, the test accuracy of each is taken until the target is reached.
The clock starts with the first batch. Ours writes its weights down as the checkpoints that it takes anyway; its time
at a batch is that of its last block. Of the pipelines only the fastest of results/peers.jsonl runs. Each run is a
line of results/peers_accuracy.jsonl and is not repeated, unless `--fresh` is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from actors.storage import open_storage
from orchestrator.checkpoints import Checkpoints
from orchestrator.run_directory import RunDirectory
from tests.benchmarks.methods_runs import commit, surroundings
from tests.benchmarks.peers_arms import arms, best_pipeline
from tests.benchmarks.peers_process import run_group
from tests.benchmarks.peers_report import facts_of
from tests.benchmarks.peers_work import ROOT, Work, config_of

LINES = ROOT / "tests/benchmarks/results/peers_accuracy.jsonl"
EPOCH_BATCHES, EPOCHS = 468, 2
BATCHES = EPOCH_BATCHES * EPOCHS
TRAINING = (f"data.limit={128 * EPOCH_BATCHES}", f"training.epochs={EPOCHS}")
"""All of the training set but 96 samples: every batch is full, as pipelining requires it."""
Kept = Iterator[tuple[int, float, dict[str, Tensor]]]
"""Batches trained on, seconds since the first began, and the network's weights then."""


def chosen(rates: Mapping[str, float]) -> dict[str, list[str]]:
    """Return the groups that run, and the arguments of each."""
    best = best_pipeline(rates) or "1f1b_m8"
    schedule, _, count = best.partition("_m")
    alone: dict[str, list[str]] = {
        name: [] for name in ("unlocked", "backprop_2_threads", "ddp_2_ranks", "backprop_1_thread")
    }
    return alone | {schedule: ["--micro-batches", count]}


def of_files(folder: Path) -> Kept:
    """Yield what the ranks of a peer have kept, put together."""
    steps = sorted({int(file.name.partition("-")[0]) for file in folder.glob("*.pt")})
    for step in steps:
        parts = [torch.load(file) for file in sorted(folder.glob(f"{step}-*.pt"))]
        state = {name: tensor for part in parts for name, tensor in part["state"].items()}
        yield step, max(part["elapsed_s"] for part in parts), state


def of_run(directory: Path) -> Kept:
    """Yield the checkpoints of a run of ours."""
    run = RunDirectory.open(directory)
    uses = run.read_summary()["blocks"][-1]["uses"]
    committed, _ = Checkpoints(open_storage(run.checkpoint_address(None)), run.run_id).all()
    for checkpoint in sorted(committed, key=lambda one: one.position):
        state: dict[str, Tensor] = {}
        for index in range(len(checkpoint.shards)):
            state |= checkpoint.read(index)["body"]
        step = checkpoint.position + 1
        yield step, uses["to_s"] * step / (uses["num_uses"] - 1), state


def measure(group: str, extra: list[str], target: float) -> dict[str, Any]:
    """Train an arm and return when it reached the target, and its test accuracy at every copy until then."""
    with tempfile.TemporaryDirectory(prefix="accuracy-") as folder:
        facts = run_group(group, "cnn", BATCHES, *extra, "--warm-up=0", f"--weights={folder}", *TRAINING)
        torch.set_num_threads(2)
        work, reached = Work(config_of("cnn", TRAINING)), None
        kept = of_run(Path(folder, "run")) if group == "unlocked" else of_files(Path(folder))
        seen = []
        for step, elapsed_s, state in kept:
            seen.append({"batches": step, "s": round(elapsed_s, 2), "test_accuracy": work.accuracy(state)})
            print(f"{group}: {seen[-1]}", file=sys.stderr, flush=True)
            if seen[-1]["test_accuracy"] >= target:
                reached = seen[-1]
                break
    (arm,) = facts.pop("arms")
    return {"arm": arm, "target": target, "reached": reached, "seen": seen, **facts}


def table(lines: list[dict[str, Any]], target: float) -> str:
    """Return what every arm needed."""
    shown = [f"test accuracy of {100 * target:g} %, {BATCHES} batches of 128 at most, one run per arm"]
    for line in lines:
        end, what = line["seen"][-1], arms()[line["arm"]].what
        said = f"{end['s']:6.1f} s, {end['batches']} batches" if line["reached"] else "not reached"
        shown.append(f"  {what:44}{said}, {100 * end['test_accuracy']:.2f} %")
    return "\n".join(shown)


def main(arguments: argparse.Namespace) -> None:
    """Make the runs that are missing and print the table, or one JSON object."""
    from tests.benchmarks.peers import read_lines

    found = facts_of(read_lines(), "cnn")
    rates = {arm: median(one["samples_per_s"] for one in runs) for arm, runs in found.items()}
    if arguments.fresh:
        LINES.unlink(missing_ok=True)
    lines = [line for line in read_lines(LINES) if line["target"] == arguments.target]
    until = time.monotonic() + 60 * arguments.minutes
    for group, extra in chosen(rates).items():
        is_there = any(line["arm"].startswith(group) for line in lines)
        if is_there or arguments.table or time.monotonic() > until:
            continue
        line = measure(group, extra, arguments.target) | surroundings() | {"commit": commit()}
        with open(LINES, "a") as file:
            file.write(json.dumps(line) + "\n")
        lines.append(line)
        print(f"{line['arm']}: {line['reached'] or 'not reached'}", file=sys.stderr, flush=True)
    plain = [dict(line) for line in lines]
    print(json.dumps({"target": arguments.target, "runs": plain}) if arguments.json else table(plain, arguments.target))
