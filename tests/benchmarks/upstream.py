"""The last of two blocks is killed again and again: what does its predecessor lose?

    python tests/benchmarks/upstream.py [--kills 25] [--json]

Blocks sleep instead of computing, the first one twice as long per batch, so that the last one can catch up. Kills are
at least twice the recovery time apart. Compared with the same run's undisturbed beginning and end: the first block's
updates per second while its outbox has room, and the batches that have gone through the whole chain.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["SLEEPING"] = "2 8 8"
"""Layers, milliseconds forwards, backwards; worker processes inherit it."""


from orchestrator.cluster.ray_cluster import RayCluster  # noqa: E402
from orchestrator.config import RunConfig  # noqa: E402
from orchestrator.control import ask  # noqa: E402
from tests.benchmarks import kills  # noqa: E402
from tests.benchmarks.fault_runs import Running, disturbed  # noqa: E402
from tests.benchmarks.methods_results import FOLDER  # noqa: E402
from tests.benchmarks.methods_runs import commit, surroundings  # noqa: E402

RESULTS = FOLDER / "upstream.jsonl"
CAPACITY = 1024
UNDISTURBED_S = 12.0
SHORTEST_S = 4.0
EDGE = "block0->block1"
Sample = Mapping[str, Any]


def config(folder: Path) -> RunConfig:
    """Return a run that would train for ever."""
    sections: Mapping[str, Any] = {
        "data": {"name": "generated", "shape": [1, 2, 2], "classes": 4, "size": 1600, "batch_size": 16},
        "network": {"factory": "tests.benchmarks.sleeping:build", "blocks": 2},
        "training": {"epochs": 10_000}, "evaluation": {"every_epochs": 0}, "checkpoint": {"every_batches": 50},
        "recovery": {"max_failures": 30, "spares": 1}, "buffers": {"capacity": CAPACITY},
        "faults": {"slow": [{"block": 0, "factor": 2}]},
    }  # fmt: skip
    return kills.config(folder, "dgl", sections)


class Sampler:
    """Notes, about once a second, how far the blocks are and how much waits between them."""

    def __init__(self, run: Running) -> None:
        self.run, self.samples = run, []
        self._over = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()

    def stop(self) -> list[Sample]:
        """Return what was noted."""
        self._over.set()
        return self.samples

    def _sample(self) -> None:
        last = None
        while not self._over.wait(0.05):
            status = self.run.status()
            if status["state"] != "running" or status["updated_at"] == last or len(status["blocks"]) < 2:
                continue
            last = status["updated_at"]
            waiting = next(edge["unreceived"] for edge in status["edges"] if edge["name"] == EDGE)
            first, second = (block["version"] for block in status["blocks"])
            self.samples.append({"at": last, "first": first, "last": second, "waiting": waiting})


def rate(samples: Sequence[Sample], since: float, until: float) -> tuple[float, float]:
    """Return the first block's updates per second while its outbox had room, and the share of time it had none."""
    updates = with_room = without = 0.0
    for a, b in itertools.pairwise(samples):
        if not since <= a["at"] <= b["at"] <= until:
            continue
        if max(a["waiting"], b["waiting"]) >= CAPACITY:
            without += b["at"] - a["at"]
            continue
        updates, with_room = updates + b["first"] - a["first"], with_room + b["at"] - a["at"]
    return updates / with_room if with_room else float("nan"), without / (with_room + without or 1.0)


def measured(num_kills: int) -> dict[str, Any]:
    """Do the run; return what it has shown."""
    found: dict[str, Any] = {}

    def act(run: Running) -> None:
        sampler, pause = Sampler(run), threading.Event()
        times = [time.time()]
        pause.wait(UNDISTURBED_S)
        times.append(time.time())
        for _ in range(num_kills):
            known, before = run.num_lost("block1"), len(run.told.trains_s)
            run.signal("block1", signal.SIGKILL)
            run.watch_recovery("block1", known)
            if len(run.told.trains_s) == before:
                break
            pause.wait(max(SHORTEST_S, 2 * run.told.trains_s[-1]))
        times.append(time.time())
        run.wait_for(lambda: bool(sampler.samples) and sampler.samples[-1]["waiting"] < 10)
        times.append(time.time())
        pause.wait(UNDISTURBED_S)
        times.append(time.time())
        run.told.done.clear()
        samples = sampler.stop()
        before, after = rate(samples, times[0], times[1])[0], rate(samples, times[3], times[4])[0]
        during, full = rate(samples, times[1], times[2])
        alone = statistics.mean([before, after])
        whole = [sample for sample in samples if times[1] <= sample["at"] <= times[3]]
        through = (whole[-1]["last"] - whole[0]["last"]) / (whole[-1]["at"] - whole[0]["at"])
        found.update(
            before_per_s=round(before, 2), after_per_s=round(after, 2), during_per_s=round(during, 2),
            kept=round(during / alone, 3), outbox_full_share=round(full, 3),
            most_waiting=max(sample["waiting"] for sample in samples), slowdown=round(alone / through, 3),
        )  # fmt: skip
        ask(run.folder, ["stop"])

    summary, told = disturbed(config, 50, act, RayCluster(object_store_bytes=10**9))
    return found | {
        "kills": len(told.trains_s), "noticed_s": told.detected_s, "trains_s": told.trains_s,
        "batches_repeated": [e["batches_repeated"] for e in summary.events if e["event"] == "recovered"],
        "balanced": not [e for e in summary.events if e["event"] == "imbalance"],
    }  # fmt: skip


def main() -> int:
    """Measure, save, print; 1 if less than 90 % of the updates per second was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measured(arguments.kills)
    line = found | {"load": os.getloadavg(), "commit": commit()} | surroundings()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    if arguments.json:
        print(json.dumps(line))
    else:
        print(
            f"{found['kills']} kills of the last block; trains again after {statistics.median(found['trains_s']):.2f} s"
        )
        print(f"updates/s of the first block: {found['before_per_s']} and {found['after_per_s']} undisturbed, "
              f"{found['during_per_s']} meanwhile: {100 * found['kept']:.1f} %")  # fmt: skip
        print(f"its outbox was full for {100 * found['outbox_full_share']:.1f} % of the time; the chain needed "
              f"{found['slowdown']} times as long")  # fmt: skip
    return int(found["kept"] < 0.9)


if __name__ == "__main__":
    sys.exit(main())
