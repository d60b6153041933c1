"""Train with every edge on a slow wire that loses: `python -m tests.far_wire CONFIG`, for kernels without `tc netem`.

Every message takes 50 ms more, and one in a hundred is lost and has to be asked for again.
"""

from __future__ import annotations

import sys
from collections import Counter

from actors.transport.faulty import Fault
from orchestrator.api import open_cluster, train
from orchestrator.catalog import find_catalog
from orchestrator.config import load_config
from tests.benchmarks.watched_cluster import WatchedCluster

LATENCY_S = 0.05
MESSAGES = 2000
LOST_EVERY, FIRST_LOST = 100, 17


def slow_and_lossy(edge: str) -> list[Fault]:
    """What happens to the messages of any edge."""
    return [
        Fault(number, "drop") if number % LOST_EVERY == FIRST_LOST else Fault(number, "delay", seconds=LATENCY_S)
        for number in range(MESSAGES)
    ]


def main(path: str) -> None:
    config = load_config([path], [], find_catalog())
    cluster = WatchedCluster(open_cluster(config), slow_and_lossy)  # type: ignore[arg-type] - it is over Ray
    train(config, progress=False, cluster=cluster)  # type: ignore[arg-type]
    fired: Counter[str] = Counter()
    for seen in cluster.seen.values():
        for counts in seen.fired.values():
            fired.update(counts)
    print(f"fired: {dict(fired)}")


if __name__ == "__main__":
    main(sys.argv[1])
