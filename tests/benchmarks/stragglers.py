"""Asynchronous decoupled greedy learning beside a slow block, on real processes (simulated in 1901.08164).

    python tests/benchmarks/stragglers.py            every run that is missing, then table, verdicts and figure
    python tests/benchmarks/stragglers.py --short    factors 1 and 3, one capacity, under 5 minutes
    python tests/benchmarks/stragglers.py --table    only what is there

45 runs, about 20 minutes on 2 quiet cores; stop and go on at will. Each finished run is a line of
results/stragglers.jsonl; a run is not repeated as long as its config is the same. Devices are simulated: real
learning, and a rest after each step until it has lasted as long as on a slower device.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from orchestrator.api import evaluate  # noqa: E402
from orchestrator.summary import Summary  # noqa: E402
from tests.benchmarks.arms import Arm  # noqa: E402
from tests.benchmarks.experiment import run_experiment  # noqa: E402
from tests.benchmarks.paces import block_paces, edge_staleness  # noqa: E402
from tests.benchmarks.stragglers_figure import figure  # noqa: E402
from tests.benchmarks.stragglers_plan import FULL, SHORT, arms  # noqa: E402
from tests.benchmarks.stragglers_report import report  # noqa: E402
from tests.benchmarks.stragglers_verdicts import verdicts  # noqa: E402


def measure(arm: Arm, summary: Summary, directory: Path) -> dict[str, Any]:
    """Return what a run has shown; test data are read once, at its end."""
    return {
        "blocks": block_paces(summary, arm.config.data.batch_size),
        "staleness": edge_staleness(summary),
        "curve": learning_curve(directory / "metrics.jsonl", summary.blocks[-1]["name"]),
        "test_accuracy": evaluate(directory)["test"]["accuracy"],
        "weights_sha256": summary.weights_sha256,
    }


def learning_curve(metrics: Path, block: str) -> list[tuple[float, int, float]]:
    """Return a block's evaluations: seconds since the run began, batch, held-out accuracy."""
    found = (json.loads(text) for text in metrics.read_text().splitlines())
    return [
        (line["at_s"], line["batch"], line["accuracy"])
        for line in found
        if line["kind"] == "evaluation" and line["block"] == block and line["split"] == "validation"
    ]


def main() -> int:
    """Run what is missing and show everything; 1 if a claim does not hold."""
    lines, size = run_experiment(
        __doc__, "factors 1 and 3, one capacity, under 5 minutes",
        full=FULL, short=SHORT, arms=arms, measure=measure, report=report, figure=figure,
    )  # fmt: skip
    return int(any(verdict.holds is False for verdict in verdicts(lines, size)))


if __name__ == "__main__":
    sys.exit(main())
