"""What a block's process holds in memory, for 1, 2, 4 and 8 blocks, beside back-propagation in one process.

    python tests/benchmarks/memory.py [--blocks 1 2 4 8] [--retention off on] [--batches 16] [--json]

The network is 8 equal convolutions on 28 x 28 maps, so that a block's share of it is 1/N; the heads are the small ones
(mlp_sr). Figures are peaks of private memory, looked at ten times a second: what a process has allocated itself above
what it held when everything had been imported. `activations` is what a block's body keeps between its forward and its
backward pass, counted from its layers. With retention (`recovery.mode: local`, a checkpoint at the end only) an actor
keeps what it has sent until a checkpoint covers it; without (`none`) until it has been received.
Each run is a line of results/memory.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from orchestrator.api import train
from orchestrator.catalog import find_catalog
from orchestrator.config import RunConfig, config_from_mapping
from tests.benchmarks.methods_runs import commit, surroundings

ROOT = Path(__file__).parent.parent.parent
LINES = ROOT / "tests/benchmarks" / "results/memory.jsonl"
MB = 1e6
RETENTION = {"off": "none", "on": "local"}


def config_of(blocks: int, batches: int, retention: str, run_dir: str | None = None) -> RunConfig:
    """Return the config of a run."""
    raw: dict[str, Any] = {
        "run_dir": run_dir,
        "data": {"name": "fashion_mnist", "limit": 128 * batches, "batch_size": 128},
        "network": {"name": "cnn", "channels": [32] * 8, "pool_after": [], "blocks": blocks},
        "objective": {"name": "cross_entropy", "head": {"kind": "mlp_sr"}},
        "training": {"epochs": 1, "channels_last": True},
        "evaluation": {"every_epochs": 0, "splits": []},
        "recovery": {"mode": RETENTION[retention]},
        "checkpoint": {"every_s": 0} if retention == "off" else {"every_batches": batches},
        "placement": {"cpus_per_block": 0.1},
    }
    return config_from_mapping(raw, find_catalog())


def measure_run(blocks: int, batches: int, retention: str) -> dict[str, Any]:
    """Train over Ray and return the peaks of every process above its baseline, in bytes."""
    from tests.benchmarks.memory_use import MeasuredCluster

    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        config = config_of(blocks, batches, retention, f"{folder}/run")
        cluster = MeasuredCluster(object_store_bytes=1024**3)
        summary = train(config, progress=False, cluster=cluster)
    above = cluster.above_baseline()
    return {
        "blocks": blocks, "retention": retention, "batches": batches,
        "block_bytes": [above[block["name"]] for block in summary.blocks],
        "source_bytes": above["source"], "object_store_bytes": above["object store"],
        "activation_bytes": activation_bytes(config),
    }  # fmt: skip


def measure_backprop(batches: int) -> dict[str, Any]:
    """Train the same network in one process by plain back-propagation and return its peak above its baseline."""
    code = "from tests.benchmarks.memory import backprop_process; backprop_process"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}({batches})"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {"blocks": 0, "retention": "off", "batches": batches, **json.loads(done.stdout.splitlines()[-1])}


def backprop_process(batches: int) -> None:
    """Train in this process and print what it took."""
    import torch

    from tests.benchmarks.memory_use import Peaks, private_bytes
    from tests.benchmarks.peers_backprop import Backprop
    from tests.benchmarks.peers_work import Work

    torch.set_num_threads(1)
    before = private_bytes()
    config = config_of(1, batches, "off")
    work = Work(config)
    with Peaks({"backprop": private_bytes}) as peaks:
        trainer = Backprop(work)
        for batch in work.batches():
            trainer.step(batch)
    kept = activation_bytes(config)
    print(json.dumps({"block_bytes": [peaks.bytes["backprop"] - before], "activation_bytes": kept}))


def activation_bytes(config: RunConfig) -> list[int]:
    """Return what each block's forward pass keeps for its backward pass, parameters left out."""
    import torch

    from actors.block import Block
    from actors.messages import Kind, Message
    from orchestrator.plan import make_plan
    from orchestrator.specs import block_spec

    plan, kept = make_plan(config), []
    h = torch.zeros(128, *plan.raw.shape)
    for index, shape in enumerate(plan.shapes):
        block = Block(block_spec(config, plan, index, "memory"), shape)
        own = {parameter.untyped_storage().data_ptr() for parameter in block.body.parameters()}
        seen: dict[int, int] = {}

        def note(tensor: torch.Tensor, own: set[int] = own, seen: dict[int, int] = seen) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            labels = torch.zeros(128, dtype=torch.int64)
            h = block.forward(Message(Kind.ACTIVATION, 0, tensors={"h": h, "labels": labels})).detach()
        kept.append(sum(seen.values()))
    return kept


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the runs as a table, in MB."""
    shown = [
        f"{'':28}{'largest block':>14}{'mean':>8}{'of backprop':>13}{'activations':>13}{'1/N':>7}"
        f"{'source':>8}{'object store':>14}"
    ]
    whole = next((line for line in lines if line["blocks"] == 0), None)
    for line in sorted(lines, key=lambda line: (line["retention"], line["blocks"])):
        used, kept = line["block_bytes"], line["activation_bytes"]
        name = f"{line['blocks']} blocks, retention {line['retention']}" if line["blocks"] else "backprop, one process"
        of = f"{max(used) / whole['block_bytes'][0]:13.2f}" if whole else f"{'':13}"
        rest = "".join(f"{line[key] / MB:{width}.0f}" for key, width in WIDTHS.items() if key in line)
        shown.append(
            f"{name:28}{max(used) / MB:14.0f}{sum(used) / len(used) / MB:8.0f}{of}{max(kept) / MB:13.0f}"
            f"{1 / max(1, line['blocks']):7.3f}{rest}"
        )
    return "\n".join(shown) + "\n(MB; private memory above what was held after the imports)"


WIDTHS = {"source_bytes": 8, "object_store_bytes": 14}


def main() -> None:
    """Measure and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--retention", nargs="*", choices=list(RETENTION), default=list(RETENTION))
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    where, lines = surroundings() | {"commit": commit()}, []
    jobs = [(blocks, retention) for blocks in arguments.blocks for retention in arguments.retention]
    for blocks, retention in [(0, "off"), *jobs]:
        measured = measure_run(blocks, arguments.batches, retention) if blocks else measure_backprop(arguments.batches)
        lines.append(measured)
        with open(LINES, "a") as file:
            file.write(json.dumps(measured | where) + "\n")
        print(f"{blocks} blocks, retention {retention}: done", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps({"runs": lines}))
        return
    print(table(lines))


if __name__ == "__main__":
    main()
