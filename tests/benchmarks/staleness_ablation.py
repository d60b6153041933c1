"""What staleness costs and buys: greedy learning from replay buffers under a bound, two methods with late feedback.

    python tests/benchmarks/staleness_ablation.py            every run that is missing, then table and figure
    python tests/benchmarks/staleness_ablation.py --short    handwritten digits, one seed, about 2 minutes
    python tests/benchmarks/staleness_ablation.py --table    only what is there

48 runs, about 15 minutes on 2 quiet cores; stop and go on at will. Each finished run is a line of
results/staleness_ablation.jsonl; a run is not repeated as long as its config is the same.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from orchestrator.summary import Summary  # noqa: E402
from tests.benchmarks.ablation_plan import FULL, SHORT, arms  # noqa: E402
from tests.benchmarks.ablation_report import figure, report  # noqa: E402
from tests.benchmarks.arms import Arm  # noqa: E402
from tests.benchmarks.experiment import run_experiment  # noqa: E402
from tests.benchmarks.paces import block_paces, edge_staleness  # noqa: E402


def measure(arm: Arm, summary: Summary, directory: Path) -> dict[str, Any]:
    """Return what a run has shown."""
    return {
        "test_accuracy": summary.test_accuracy,
        "blocks": block_paces(summary, arm.config.data.batch_size),
        "staleness": edge_staleness(summary),
    }


def main() -> int:
    """Run what is missing and show everything."""
    run_experiment(
        __doc__, "handwritten digits, one seed",
        full=FULL, short=SHORT, arms=arms, measure=measure, report=report, figure=figure,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
