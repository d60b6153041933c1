"""Arms of a benchmark: whole runs that differ in a few settings, done one after another on one warm cluster.

Each finished arm is a line of a file of results; an arm is not repeated as long as its config is the same.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from orchestrator.api import train
from orchestrator.catalog import find_catalog
from orchestrator.cluster.contract import Cluster
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config import RunConfig, config_from_mapping, resolved
from orchestrator.summary import Summary
from tests.benchmarks.methods_plan import Key
from tests.benchmarks.methods_results import Results
from tests.benchmarks.methods_runs import commit, surroundings

Line = Mapping[str, Any]
Measure = Callable[["Arm", Summary, Path], dict[str, Any]]
"""Called with an arm, its summary and its run directory before that is deleted; returns what the line says of it."""

PHASE = "arm"
NOT_OF_AN_ARM = ("run_dir", "placement")
"""Keys of a config that may differ between runs of one arm."""


@dataclass(frozen=True)
class Arm:
    """One run: `facts` tell it from the other arms; it depends on `config`, and on what stands `beside` that."""

    facts: Mapping[str, Any] = field(hash=False)
    config: RunConfig = field(hash=False, repr=False)
    beside: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @cached_property
    def config_hash(self) -> str:
        """16 digits of the SHA-256 of all that it depends on."""
        plain = {name: value for name, value in resolved(self.config).items() if name not in NOT_OF_AN_ARM}
        plain |= {"beside": dict(self.beside)} if self.beside else {}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def key(self) -> Key:
        """What makes this run the same as one in a file of results."""
        return PHASE, self.config_hash

    def __str__(self) -> str:
        return " ".join(f"{name} {value}" for name, value in self.facts.items())


def make_arm(facts: Mapping[str, Any], *layers: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> Arm:
    """Return an arm whose config is made of layers, section by section, later ones above earlier ones."""
    raw: dict[str, Any] = {}
    for layer in layers:
        for name, value in copy.deepcopy(dict(layer)).items():
            raw[name] = {**raw.get(name, {}), **value} if isinstance(value, dict) else value
    return Arm(facts, config_from_mapping(raw, find_catalog()), beside or {})


@cache
def warm_cluster() -> RayCluster:
    """Return the Ray cluster on this machine whose processes are kept from run to run."""
    return RayCluster(object_store_bytes=2 * 1024**3, keep=True)


def lines_of(arms: Iterable[Arm], results: Results) -> list[Line]:
    """Return the lines of these arms that are there, in the order of the arms."""
    return [results.lines[arm.key] for arm in arms if arm.key in results.lines]


def run_missing(
    arms: Sequence[Arm],
    results: Results,
    measure: Measure,
    *,
    cluster: Callable[[Arm], Cluster] = lambda arm: warm_cluster(),
    minutes: float = float("inf"),
) -> None:
    """Run the arms that have no line yet, one at a time.

    Args:
        arms: in the order in which they are run.
        results: where their lines are kept.
        measure: says what an arm has shown.
        cluster: returns where the actors of an arm run.
        minutes: none is started later.
    """
    until, measured = time.monotonic() + 60 * minutes, commit()
    missing = [arm for arm in arms if arm.key not in results.lines]
    for number, arm in enumerate(missing, 1):
        if time.monotonic() > until:
            return
        line = perform(arm, cluster(arm), measure)
        if line is None:
            return
        results.append(line | {"commit": measured} | surroundings())
        said = line["reason"] or f"{line['wall_s']:.1f} s"
        print(f"{number} of {len(missing)}: {arm}: {said}", flush=True)


def perform(arm: Arm, cluster: Cluster, measure: Measure) -> dict[str, Any] | None:
    """Train an arm and return its line; None if it was stopped. An arm that raises gives a line with the reason."""
    line = {"phase": PHASE, "arm": dict(arm.facts), "config_sha256": arm.config_hash}
    with tempfile.TemporaryDirectory(prefix="arm-") as folder:
        directory = Path(folder, "run")
        config = arm.config.model_copy(update={"run_dir": str(directory)})
        try:
            summary = train(config, progress=False, cluster=cluster)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].replace(folder, "")
            return line | {"status": "failed", "reason": reason}
        if summary.status != "completed":
            return None
        facts = {"status": "completed", "reason": None, "wall_s": round(summary.wall_s, 2)}
        return line | facts | measure(arm, summary, directory)


def origin(lines: Iterable[Line]) -> str:
    """Return the commits and machines that lines come from, as one sentence each."""
    found = list(lines)
    commits = sorted({line["commit"] for line in found}) or ["none yet"]
    machines = sorted({f"{line['machine']['cores']} cores of {line['machine']['processor']}" for line in found})
    return ". ".join([f"Commit {', '.join(commits)}", *machines]) + "."
