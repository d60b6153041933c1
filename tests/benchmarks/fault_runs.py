"""One run that is disturbed while it trains, and what the disturbance did, as seen from outside."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.step_mark import marked_batch
from orchestrator.api import train
from orchestrator.cluster.contract import Cluster
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config import RunConfig
from orchestrator.summary import Summary
from tests.benchmarks import kills

DEADLINE_S = 120.0
LOOK_EVERY_S = 0.005
KEEPING: Mapping[str, Any] = {"checkpoint": {"every_batches": 25}}

Facts = dict[str, Any]
"""What one run has shown; `held`, and `why` not."""


@functools.cache
def shared_cluster() -> RayCluster:
    """Return the Ray cluster on this machine whose processes are kept from run to run."""
    return RayCluster(object_store_bytes=300 * 1024**2, keep=True)


@functools.cache
def undisturbed(rule: str, sections: str = "{}") -> Summary:
    """Return the result of the undisturbed run in one process; `sections` is JSON."""
    alone = {"placement": {"backend": "in_process"}, **json.loads(sections)}
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        return train(kills.config(Path(folder, "run"), rule, alone), progress=False)


@dataclass
class Told:
    """What was done to a run, and when it was noticed.

    Args:
        done: actor -> when it was disturbed, seconds since the epoch.
        detected_s: from then until its loss was recorded.
        trains_s: from then until another life of it began its first step.
    """

    done: dict[str, float] = field(default_factory=dict)
    detected_s: list[float] = field(default_factory=list)
    trains_s: list[float] = field(default_factory=list)


class WasStopped(Exception):
    """A signal to the benchmark ended a run before its time: what it has shown says nothing."""


class Running:
    """A run under way, as its directory shows it."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster, self.told = folder, cluster, Told()

    def status(self) -> Mapping[str, Any]:
        """Return status.json; a run that has none yet is starting."""
        try:
            return json.loads((self.folder / "status.json").read_text())
        except OSError:
            return {"batch": -1, "state": "starting", "blocks": []}

    def pid(self, actor: str) -> int:
        """Return the process of an actor's present life."""
        import ray

        host = self.cluster._hosts[actor]  # type: ignore[attr-defined]
        asked = host.report.options(concurrency_group="control").remote()
        return int(ray.get(asked, timeout=DEADLINE_S)["pid"])

    def signal(self, actor: str, number: int) -> int:
        """Send a signal to an actor's process, and note it as the disturbance; return the process id."""
        pid = self.pid(actor)
        os.kill(pid, number)
        self.told.done[actor] = time.time()
        return pid

    def wait_for(self, holds: Callable[[], bool]) -> bool:
        """Wait until something holds; False if the deadline or the end of the run came first."""
        until = time.monotonic() + DEADLINE_S
        pause = threading.Event()
        while not holds():
            if time.monotonic() > until or self.status()["state"] not in ("starting", "running"):
                return False
            pause.wait(LOOK_EVERY_S)
        return True

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        """Return the events of a kind that the run has recorded so far."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        except OSError:
            return []
        found = [json.loads(line) for line in lines if '"event"' in line and line.endswith("}")]
        return [line for line in found if line.get("event") == kind]

    def num_lost(self, actor: str) -> int:
        """Return how often the run has recorded the loss of an actor."""
        return sum(event["actor"] == actor for event in self.events("lost"))

    def watch_recovery(self, actor: str, known: int = 0) -> None:
        """Measure when a further loss of an actor than the `known` ones is recorded, and when its next life trains."""
        since, mark = self.told.done[actor], self.folder / "steps" / actor
        before, is_reset = marked_batch(str(mark)), False
        if not self.wait_for(lambda: self.num_lost(actor) > known):
            return
        self.told.detected_s.append(round(time.time() - since, 3))
        while actor.startswith("block") and self.status()["state"] in ("starting", "running"):
            batch = marked_batch(str(mark))
            is_reset = is_reset or batch is None or batch < (before or 0)
            if is_reset and batch is not None:
                self.told.trains_s.append(round(time.time() - since, 3))
                return
            time.sleep(LOOK_EVERY_S)


@contextmanager
def disturbing(running: Running, batch: int, act: Callable[[Running], None]) -> Iterator[None]:
    """Act on a run once it has come to a batch, and measure what follows."""

    def wait_and_act() -> None:
        if running.wait_for(lambda: running.status()["batch"] >= batch):
            act(running)
            for actor in list(running.told.done):
                running.watch_recovery(actor)

    thread = threading.Thread(target=wait_and_act, daemon=True)
    thread.start()
    yield
    thread.join(DEADLINE_S)


def disturbed(
    make: Callable[[Path], RunConfig], batch: int, act: Callable[[Running], None], cluster: Cluster | None = None
) -> tuple[Summary, Told]:
    """Train a run over Ray and act on it at a batch; return the result and what was done."""
    cluster = cluster or shared_cluster()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        running = Running(Path(folder, "run"), cluster)
        with disturbing(running, batch, act):
            summary = train(make(running.folder), progress=False, cluster=cluster)
    return summary, running.told


def facts_of(
    summary: Summary, told: Told | None = None, expected: Summary | None = None, losses: int | None = None
) -> Facts:
    """Say what a run has shown; it must have the undisturbed run's weights, balanced ledgers and that many losses.

    Raises:
        WasStopped: it was.
    """
    if summary.status != "completed":
        raise WasStopped
    found = {kind: [e for e in summary.events if e["event"] == kind] for kind in ("lost", "recovered", "imbalance")}
    gone = {event["actor"] for event in found["lost"]}
    wrong = [f"{e['edge']}: {e['reason']}" for e in found["imbalance"]]
    if expected is not None:
        pairs = zip(summary.blocks, expected.blocks, strict=True)
        wrong += [f"{a['name']} has other weights" for a, b in pairs if a["weights_sha256"] != b["weights_sha256"]]
    if losses is not None and len(found["lost"]) != losses:
        wrong.append(f"{len(found['lost'])} actors were lost, expected {losses}")
    own = [event for event in found["recovered"] if event["actor"] in gone]
    return {
        "held": not wrong, "why": "; ".join(wrong) or None, "lost": len(found["lost"]),
        "detected_s": told.detected_s if told else [], "trains_s": told.trains_s if told else [],
        "recovered_s": [event["after_s"] for event in own],
        "batches_repeated": [event["batches_repeated"] for event in own],
        "messages_lost": sum(edge["lost"] for edge in summary.edges), "wall_s": round(summary.wall_s, 2),
    }  # fmt: skip
