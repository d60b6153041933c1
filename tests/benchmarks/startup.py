"""From the command to the first update: where the seconds go, for 2 and for 16 blocks.

    python -m tests.benchmarks.startup [--blocks 2] [--json]

The measured process does what `unlocked train` does, and takes the time between the steps. The bound is Ray's start and
the import of what every worker needs, (blocks + 1) x CPU seconds over the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.processes import TICKS_PER_S, command, descendants, total_cpu_s

TARGETS = {2: 15.0, 16: 45.0}
"""Seconds by number of blocks; 16 blocks also within 1.3 times the bound."""


def process_start() -> float:
    """Return when this process began, on the clock of `time.clock_gettime(CLOCK_BOOTTIME)`."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / TICKS_PER_S


class Marks:
    """Seconds since the process began, by what had been done then."""

    def __init__(self) -> None:
        self._since = process_start()
        self.at: dict[str, float] = {}

    def note(self, what: str) -> None:
        """Say that something has just been done."""
        self.at[what] = time.clock_gettime(time.CLOCK_BOOTTIME) - self._since

    def lengths(self) -> dict[str, float]:
        """Return the seconds between a mark and the one before."""
        times = [0.0, *self.at.values()]
        return {name: end - begin for name, begin, end in zip(self.at, times, times[1:], strict=False)}


def config(blocks: int, folder: str) -> dict[str, Any]:
    """Return a small run on handwritten digits."""
    return {
        "run_dir": f"{folder}/run",
        "data": {"name": "digits", "batch_size": 64},
        "network": {"name": "mlp", "blocks": blocks, "widths": [32] * (blocks - 1)},
        "rule": {"name": "local"},
        "training": {"epochs": 1},
        "placement": {"cpus_per_block": 0.05},
    }


def watched(kind: type[Any], marks: Marks, cpu: dict[str, float]) -> type[Any]:
    """Return a Ray cluster that notes how far it is."""

    class Watched(kind):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            marks.note("ray")

        def start(self, *arguments: Any) -> None:
            import ray

            super().start(*arguments)
            ray.get([host.__ray_ready__.remote() for host in self._hosts.values()])
            marks.note("workers")
            workers = [pid for pid in descendants(os.getpid()) if command(pid).startswith("ray::RayHost")]
            cpu["workers_cpu_s"] = total_cpu_s(workers)

        def assign(self, *arguments: Any) -> Any:
            found = super().assign(*arguments)
            marks.note("build")
            return found

        def launch(self) -> None:
            marks.note("connect")
            super().launch()

    return Watched


def measure(blocks: int) -> dict[str, Any]:
    """Train, and return the seconds of every step on the way to the first update of the last block."""
    marks, cpu = Marks(), {}
    marks.note("python")
    from orchestrator import api
    from orchestrator.cluster import ray_cluster

    marks.note("import")
    ray_cluster.RayCluster = watched(ray_cluster.RayCluster, marks, cpu)  # type: ignore[misc]
    make_plan = api.make_plan

    def noted_plan(*arguments: Any) -> Any:
        plan = make_plan(*arguments)
        marks.note("plan")
        return plan

    api.make_plan = noted_plan
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        summary = api.train(config(blocks, folder), progress=False)
    last = summary.blocks[-1]
    first_batch_s = last["uses"]["from_s"] + (last["uses"]["to_s"] - last["uses"]["from_s"]) / last["uses"]["num_uses"]
    lengths = marks.lengths() | {"first_batch": first_batch_s}
    return {"blocks": blocks, "total_s": sum(lengths.values()), "seconds": lengths} | cpu


def import_cpu_s() -> float:
    """Return the CPU seconds in which a process imports what every worker needs, Ray included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import ray, actors.host"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(blocks: int) -> dict[str, Any]:
    """Measure in a process of its own, and add the bound."""
    words = [sys.executable, "-m", "tests.benchmarks.startup", "--blocks", str(blocks), "--measured"]
    found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    own = import_cpu_s()
    bound = found["seconds"]["ray"] + (blocks + 1) * own / (os.cpu_count() or 1)
    return found | {"import_cpu_s": own, "bound_s": bound, "of_bound": found["total_s"] / bound}


def main() -> None:
    """Print the measurement as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--measured", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.measured:
        print(json.dumps(measure(arguments.blocks)))
        return
    results = [run(blocks) for blocks in ([arguments.blocks] if arguments.blocks else TARGETS)]
    if arguments.json:
        print(json.dumps({"runs": results}))
        return
    for found in results:
        steps = "  ".join(f"{name} {seconds:.1f}" for name, seconds in found["seconds"].items())
        print(f"{found['blocks']:3} blocks: {found['total_s']:.1f} s = {steps}")
        print(
            f"            workers' CPU {found['workers_cpu_s']:.1f} s, an import {found['import_cpu_s']:.1f} s each; "
            f"bound {found['bound_s']:.1f} s, times {found['of_bound']:.2f}"
        )


if __name__ == "__main__":
    main()
