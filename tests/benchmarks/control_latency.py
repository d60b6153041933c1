"""How soon a running job acknowledges `unlocked control`: 30 requests, their median and the slowest.

    python -m tests.benchmarks.control_latency [--requests 30] [--json]

A job over Ray trains the quickstart in a process of its own. Acknowledged is what is validated and queued; the folder
is read every 0.2 s, so that a request waits for 0.1 s on average before it is seen.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from actors.errors import UserError
from orchestrator import control
from orchestrator.run_directory import RunDirectory

TARGET_S = 1.0
START_S = 120.0
"""Seconds in which a job must have begun to train."""


def wait_until_it_trains(folder: Path, job: subprocess.Popen[bytes]) -> None:
    """Return when the job's first batch is through.

    Raises:
        RuntimeError: it has ended, or has not come so far in time.
    """
    until = time.monotonic() + START_S
    while time.monotonic() < until and job.poll() is None:
        try:
            status: dict[str, Any] = RunDirectory.open(folder).read_status()
        except UserError:
            status = {"state": "starting"}
        if status["state"] == "running" and status["batch"] > 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"the job has not begun to train within {START_S:.0f} s")


def measure(num_requests: int) -> dict[str, Any]:
    """Return the seconds in which each request was acknowledged, with their median and the slowest."""
    with tempfile.TemporaryDirectory(prefix="control-") as name:
        folder = Path(name) / "run"
        words = ["train", "configs/quickstart.yaml", f"run_dir={folder}", "training.epochs=100000"]
        job = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until_it_trains(folder, job)
            lengths = [acknowledged_s(folder, 4 + number % 4) for number in range(num_requests)]
            control.ask(folder, ["stop"])
            job.wait(START_S)
        finally:
            if job.poll() is None:
                job.terminate()
                job.wait(START_S)
    return {
        "requests": num_requests,
        "median_s": median(lengths),
        "worst_s": max(lengths),
        "target_s": TARGET_S,
        "cores": os.cpu_count(),
        "lengths_s": lengths,
    }


def acknowledged_s(folder: Path, bound: int) -> float:
    """Return how long a job takes to acknowledge another staleness bound."""
    begun = time.perf_counter()
    control.ask(folder, [f"staleness.max={bound}"])
    return time.perf_counter() - begun


def main() -> None:
    """Print the measurement as a line or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.requests)
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{found['requests']} requests on {found['cores']} cores, acknowledged within {found['target_s']:.0f} s?")
    print(f"  median {found['median_s']:.2f} s, slowest {found['worst_s']:.2f} s")


if __name__ == "__main__":
    main()
