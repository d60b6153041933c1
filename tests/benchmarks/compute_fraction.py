"""How much of each block's time is computation: the large Fashion-MNIST CNN, balanced blocks, one core each.

    python tests/benchmarks/compute_fraction.py [--batches 100] [--json] [key=value ...]

The share of a block's compute thread is printed as it is, and without the evaluation that ends every run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from orchestrator.api import train
from orchestrator.catalog import find_catalog
from orchestrator.config import load_config

ROOT = Path(__file__).parent.parent.parent


def measure(batches: int, overrides: list[str]) -> dict[str, object]:
    """Train `batches` batches and return the step time and every block's shares."""
    files = [ROOT / "configs/fashion_mnist_cnn_large.yaml", ROOT / "configs/methods/dgl.yaml"]
    with tempfile.TemporaryDirectory() as folder:
        run = [f"run_dir={folder}/run", f"data.limit={batches * 128}", "training.epochs=1", "evaluation.every_epochs=0"]
        summary = train(load_config(files, [*run, *overrides], find_catalog()), progress=False)
    blocks = []
    for block in summary.blocks:
        shares = block["time_fraction"]
        training = 1 - shares["evaluate"] - shares["snapshot"]
        blocks.append({"name": block["name"], "compute_of_training": shares["compute"] / training, **shares})
    slowest = max(b["compute"] + b["wait_input"] + b["transfer"] + b["wait_output"] for b in blocks)
    step_ms = 1000 * summary.wall_s * slowest / batches
    return {"batches": batches, "samples_per_s": 128_000 / step_ms, "step_ms": step_ms, "blocks": blocks}


def main() -> None:
    """Print the measurement as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    result = measure(arguments.batches, arguments.overrides)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['step_ms']:.0f} ms per batch of 128, {result['samples_per_s']:.0f} samples/s")
    for block in result["blocks"]:  # type: ignore[attr-defined]
        shares = "  ".join(f"{name} {value:.3f}" for name, value in block.items() if name != "name")
        print(f"{block['name']}: {shares}")


if __name__ == "__main__":
    main()
