"""Runs one group of arms in a process tree of its own, and notes what else the machine was busy with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.peers_work import ROOT

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26),
}  # fmt: skip
"""What our own workers tell glibc (orchestrator/cluster); every arm gets it, as it makes steps 5 to 10 % faster."""
QUIET = 0.05
"""Share of the machine that others may use before a run begins."""
LONGEST_WAIT_S, LOOK_S = 20.0, 0.5


def run_group(group: str, network: str, steps: int, *extra: str) -> dict[str, Any]:
    """Return `arms` (arm -> facts), how busy the machine was before, and the share that the host has stolen.

    Raises:
        RuntimeError: the run failed.
    """
    busy = _quiet()
    threads = "2" if group == "backprop_2_threads" else "1"
    environment = os.environ | KEEP_MEMORY | {
        "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    before, since = _processor_time(), time.monotonic()
    command = [sys.executable, "-m", "tests.benchmarks.peers_run", group, network, f"--steps={steps}", *extra]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    after = _processor_time()
    if done.returncode:
        raise RuntimeError(f"{group} on {network} failed:\n{done.stderr[-3000:]}")
    total = sum(after.values()) - sum(before.values())
    return {
        "arms": json.loads(done.stdout.splitlines()[-1]),
        "busy_before": round(busy, 3),
        "stolen": round((after["steal"] - before["steal"]) / total, 4),
        "wall_s": round(time.monotonic() - since, 1),
    }


def _quiet() -> float:
    """Wait until others use less than `QUIET` of the machine, or `LONGEST_WAIT_S`; return what they use."""
    until = time.monotonic() + LONGEST_WAIT_S
    while True:
        before = _processor_time()
        time.sleep(LOOK_S)
        after = _processor_time()
        total = sum(after.values()) - sum(before.values())
        busy = 1 - (after["idle"] - before["idle"]) / max(total, 1)
        if busy < QUIET or time.monotonic() > until:
            return busy


def _processor_time() -> dict[str, int]:
    """Return the ticks that all cores have spent, `idle` (waiting for disks included), `steal` and the rest."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, steal = fields[3] + fields[4], fields[7]
    return {"idle": idle, "steal": steal, "rest": sum(fields) - idle - steal}
