"""Performs one run of the methods benchmark and says what came of it, as one line of the file of results."""

from __future__ import annotations

import gc
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from actors.datasets.dataset import DataSpec
from actors.datasets.loading import load_data
from orchestrator.api import train
from orchestrator.cluster.contract import Cluster
from orchestrator.summary import Summary
from tests.benchmarks.methods_plan import ROOT, Job

MEASURED = ("actors", "orchestrator", "configs")
"""Folders whose uncommitted changes are noted beside the commit."""


def one_thread() -> None:
    """Make a worker process use one core."""
    import torch

    torch.set_num_threads(1)


def perform(job: Job, commit: str, cluster: Cluster | None = None) -> dict[str, Any] | None:
    """Train a run and return its line; None if it was stopped.

    A run that raises, or meets a number that is not finite, gives a line with the reason and no accuracy.
    """
    line = {
        "phase": job.phase, "network": job.network, "method": job.method, "seed": job.seed,
        "rates": dict(job.rates), "config_sha256": job.config_hash, "commit": commit,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="methods-") as folder:
        config = job.config.model_copy(update={"run_dir": f"{folder}/run"})
        since = time.process_time()
        try:
            summary = train(config, progress=False, cluster=cluster)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].replace(folder, "")
            status = "diverged" if "is not finite" in reason else "failed"
            return line | {"status": status, "reason": reason} | surroundings()
    gc.collect()  # a finished run is a ring of objects, and a worker does hundreds
    if summary.status != "completed":
        return None
    spent = {"cpu_s": round(time.process_time() - since, 2)} if cluster is None else {}
    return line | outcome(job, summary) | spent | surroundings()


def outcome(job: Job, summary: Summary) -> dict[str, Any]:
    """Return what a run has shown: of a tuning run the validation accuracy, of a final run the test accuracy.

    Raises:
        ValueError: a tuning run has read the test data.
    """
    if job.phase == "tuning" and summary.test_accuracy is not None:
        raise ValueError(f"{job.method}: a tuning run has read the test data")
    trained = round(summary.samples_per_s * summary.wall_s)
    facts: dict[str, Any] = {
        "status": "completed", "reason": None, "wall_s": round(summary.wall_s, 2), "samples": trained,
        "bytes_per_edge_and_sample": bytes_per_sample(summary, trained, _num_evaluated(job)),
    }  # fmt: skip
    bad = [block["name"] for block in summary.blocks if not math.isfinite(_number(block["loss"]))]
    if bad:
        return facts | {"status": "diverged", "reason": f"diverged: the loss of {', '.join(bad)} is no number"}
    if job.phase == "throughput":
        return facts | {"samples_per_s": round(summary.samples_per_s, 1)}
    which = "validation_accuracy" if job.phase == "tuning" else "test_accuracy"
    accuracy = getattr(summary, which)
    if accuracy is None:
        return facts | {"status": "failed", "reason": "the last block counts no correct predictions"}
    return facts | {which: accuracy}


def bytes_per_sample(summary: Summary, trained: int, evaluated: int) -> dict[str, float]:
    """Return the bytes of every edge over the samples that the source sent down the chain or its own line.

    Evaluation batches travel from block to block too, on the edges that have no colon in their names.
    """
    return {
        edge["name"]: round(edge["bytes"] / (trained if ":" in edge["name"] else trained + evaluated), 1)
        for edge in summary.edges
    }


def _number(loss: float | None) -> float:
    return 0.0 if loss is None else float(loss)


def _num_evaluated(job: Job) -> int:
    data = job.config.data
    if job.phase == "tuning":
        return int(data.validation)
    return _num_test(str(data.name)) if job.phase in ("final", "longer") else 0


@cache
def _num_test(name: str) -> int:
    return len(load_data(DataSpec(name=name)).test)


def commit() -> str:
    """Return the commit that is measured, with `+changes` if what is measured differs from it; of a copy `unknown`."""
    if not (ROOT / ".git").exists():
        return "unknown"
    head = _git("rev-parse", "--short=12", "HEAD")
    return f"{head}+changes" if _git("status", "--porcelain", "--", *MEASURED) else head


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@cache
def surroundings() -> dict[str, Any]:
    """Return the versions and the machine of a run."""
    packages = ("torch", "numpy", "ray")
    return {
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "machine": {"system": sys.platform, "processor": _processor(), "cores": os.cpu_count()},
    }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    for text in facts.read_text().splitlines() if facts.exists() else ():
        name, _, value = text.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
