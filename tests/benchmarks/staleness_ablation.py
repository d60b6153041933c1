"""What staleness costs and buys: greedy learning from replay buffers under a bound, two methods with late feedback.

    python tests/benchmarks/staleness_ablation.py            every run that is missing, then table and figure
    python tests/benchmarks/staleness_ablation.py --short    handwritten digits, one seed, about 2 minutes
    python tests/benchmarks/staleness_ablation.py --table    only what is there

48 runs, about 15 minutes on 2 quiet cores; stop and go on at will. Each finished run is a line of
results/staleness_ablation.jsonl; a run is not repeated as long as its config is the same.
"""

from __future__ import annotations

import argparse
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
from tests.benchmarks.arms import Arm, lines_of, run_missing  # noqa: E402
from tests.benchmarks.methods_results import FOLDER, Results  # noqa: E402
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="handwritten digits, one seed")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after this time")
    arguments = parser.parse_args()
    size = SHORT if arguments.short else FULL
    results, planned = Results(FOLDER / f"{size.name}.jsonl", forget_failed=not arguments.table), arms(size)
    if not arguments.table:
        run_missing(planned, results, measure, minutes=arguments.minutes)
    lines = lines_of(planned, results)
    text = report(lines, size)
    print(text)
    if lines:
        (FOLDER / f"{size.name}.md").write_text(text + "\n")
        print(figure(lines, size, FOLDER / f"{size.name}.svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
