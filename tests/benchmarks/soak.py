"""Long runs of tiny blocks with random slow-downs, on a good wire and on one that delays, doubles and reorders.

    python tests/benchmarks/soak.py                   20,000 batches under pipeline and replay, on both wires
    python tests/benchmarks/soak.py --batches 500     what the test suite runs of it, and the good wire too

Checked at the end of each run: it is complete; no edge was staler than its bound, as reported and as a referee saw
it; every edge's ledger adds up; every fault that was planned has happened. Between the runs: under a pipeline the
weights are the same on both wires. Each finished run is a line of results/soak.jsonl and is not repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # hosts run the referee

from orchestrator.cluster.ray_cluster import RayCluster  # noqa: E402
from orchestrator.summary import Summary  # noqa: E402
from tests.benchmarks.arms import Arm, Line, lines_of, origin, run_missing, warm_cluster  # noqa: E402
from tests.benchmarks.methods_results import FOLDER, Results  # noqa: E402
from tests.benchmarks.paces import is_between_blocks  # noqa: E402
from tests.benchmarks.soak_checks import fired_on, referee, wrong, wrong_between  # noqa: E402
from tests.benchmarks.soak_plan import BATCHES_PER_EPOCH, BOUND, arms, faults_of, num_batches  # noqa: E402
from tests.benchmarks.watched_cluster import WatchedCluster  # noqa: E402


class Soak:
    """Runs arms on one cluster and checks each at its end.

    Args:
        cluster: with warm hosts; it is watched, and its edges spoiled, during a run.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self.watched = WatchedCluster(cluster)

    def watch(self, arm: Arm) -> WatchedCluster:
        """Return the cluster for an arm."""
        self.watched = WatchedCluster(self._cluster, lambda edge: faults_of(arm, edge))
        return self.watched

    def measure(self, arm: Arm, summary: Summary, directory: Path) -> dict[str, Any]:
        """Return what a run has shown, and what is wrong with it."""
        forward = [edge for edge in summary.edges if is_between_blocks(edge["name"])]
        seen = self.watched.seen
        return {
            "batches": num_batches(arm),
            "staleness": {edge["name"]: edge["staleness"] for edge in forward},
            "referee": {edge["name"]: _plain(referee(self.watched, edge["name"])) for edge in forward},
            "fired": {edge["name"]: dict(fired_on(self.watched, edge["name"])) for edge in summary.edges},
            "overtaken": sum(sum(one.overtaken.values()) for one in seen.values()),
            "dropped": {edge["name"]: edge["dropped"] for edge in summary.edges},
            "weights_sha256": summary.weights_sha256,
            "wrong": wrong(summary, self.watched, batches=num_batches(arm), bound=BOUND),
        }


def _plain(histogram: Counter[int]) -> dict[str, int]:
    return {str(value): histogram[value] for value in sorted(histogram)}


def told(line: Line) -> Iterator[str]:
    """Yield what a line says, for people."""
    arm = line["arm"]
    if line["status"] != "completed":
        yield f"{arm['schedule']}, {arm['wire']} wire: failed: {line['reason']}"
        return
    fired: Counter[str] = sum((Counter(found) for found in line["fired"].values()), Counter())
    stalest = {edge: (line["staleness"][edge]["max"], max(map(int, line["referee"][edge]))) for edge in line["referee"]}
    yield f"{arm['schedule']}, {arm['wire']} wire: {line['batches']:,} batches in {line['wall_s']:.0f} s"
    yield f"  largest staleness of each edge, reported and seen by the referee: {stalest}; the bound is {BOUND}"
    if fired:
        yield f"  faults: {dict(fired)}; {line['overtaken']} replies were overtaken by a later one"
    yield f"  {'; '.join(line['wrong']) or 'everything holds'}"


def main() -> int:
    """Run what is missing and show everything; 1 if something does not hold, 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20_000)
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    batches = arguments.batches
    if batches < 1 or (batches > BATCHES_PER_EPOCH and batches % BATCHES_PER_EPOCH):
        print(
            f"--batches: got {batches}, expected a multiple of {BATCHES_PER_EPOCH}, or less than that", file=sys.stderr
        )
        return 2
    results, planned = Results(FOLDER / "soak.jsonl", forget_failed=not arguments.table), arms(batches)
    if not arguments.table:
        soak = Soak(warm_cluster())
        run_missing(planned, results, soak.measure, cluster=soak.watch)
    lines = lines_of(planned, results)
    for line in lines:
        print("\n".join(told(line)))
    between = wrong_between(lines)
    print("\n".join([*between, origin(lines)]))
    return int(bool(between) or any(line.get("wrong", ["failed"]) for line in lines))


if __name__ == "__main__":
    sys.exit(main())
