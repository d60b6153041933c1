"""Faults of machines and wires: the driver, a node, the object store, messages, Ray's own calls."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import ray

from actors.host import Host
from actors.transport.faulty import Action, Fault, FaultyPort
from orchestrator.api import train
from orchestrator.cluster.contract import Cluster
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config import RunConfig
from orchestrator.wiring import Edge
from tests.benchmarks import kills
from tests.benchmarks.fault_runs import (
    DEADLINE_S,
    KEEPING,
    Facts,
    Running,
    disturbed,
    facts_of,
    shared_cluster,
    undisturbed,
)

RPC_FAILURES = {
    "RAY_testing_rpc_failure": json.dumps(
        {"CoreWorkerService.grpc_client.PushTask": {"num_failures": 8, "req_failure_prob": 2, "resp_failure_prob": 2}}
    )
}
QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "0", "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "1000", "RAY_health_check_failure_threshold": "3",
}  # fmt: skip
"""A node that is gone is found within a second or two instead of fifteen."""
STORE_BYTES = 80 * 1024**2
ACTIONS: Sequence[Action] = ("drop", "corrupt_header", "corrupt_payload", "delay", "reorder", "duplicate")


def large_messages(folder: Path, sections: Mapping[str, Any]) -> RunConfig:
    """Return a run whose messages, of 256 KB, lie in the object store."""
    data = {"name": "generated", "shape": [2, 8, 8], "classes": 4, "size": 1408, "batch_size": 128}
    large = {"data": data, "network": {"name": "mlp", "widths": [512, 512], "blocks": kills.BLOCKS}}
    return kills.config(folder, "backprop", {**large, "training": {"epochs": 40}, **sections})


# ---------------------------------------------------------------------- the driver


def kill_driver(number: int) -> Facts:
    """SIGKILL of the driver at a random batch; no actor survives it, and the same command goes on."""
    rule, batch = tuple(kills.RULES)[number % 5], random.Random(number).randrange(60, 400)
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name, "run")
        config = kills.config(folder, rule, KEEPING)
        file = Path(name, "config.yaml")
        file.write_text(json.dumps(config.model_dump(mode="json", exclude_defaults=True)))
        command = [sys.executable, "-m", "orchestrator", "train", str(file), f"run_dir={folder}"]
        environment = {**os.environ, "PYTHONPATH": str(kills.ROOT)}
        with subprocess.Popen(command, cwd=kills.ROOT, env=environment, stderr=subprocess.DEVNULL) as driver:
            running = Running(folder, cast(Cluster, None))
            has_come = running.wait_for(lambda: running.status()["batch"] >= batch)
            pids = [block["pid"] for block in running.status()["blocks"]]
            driver.kill()
        since, pause = time.monotonic(), threading.Event()
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < since + DEADLINE_S:
            pause.wait(0.02)
        survived = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        gone_s = round(time.monotonic() - since, 2)
        summary = train(config, progress=False, cluster=shared_cluster())
    facts = facts_of(summary, None, undisturbed(rule), 0)
    if survived or not has_come or not [event for event in summary.events if event["event"] == "resumed"]:
        facts |= {"held": False, "why": f"{len(survived)} actors survived; events {summary.events[:2]}"}
    return {"rule": rule, "after_batch": batch, "actors_gone_s": gone_s} | facts


# ---------------------------------------------------------------------- messages


class SpoiledCluster:
    """A cluster whose edges are spoiled at first; lines to later lives of their producers are good.

    Args:
        cluster: the cluster.
        seed: chooses the messages.
    """

    def __init__(self, cluster: RayCluster, seed: int) -> None:
        self.cluster, self.draw = cluster, random.Random(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cluster, name)

    def connect(self, edges: Sequence[Edge]) -> None:
        """Open every edge and spoil six messages of it, each in another way."""
        self.cluster.connect(edges)
        faults = {edge.name: [Fault(self.draw.randrange(5, 150), action) for action in ACTIONS] for edge in edges}
        spoiling = [host.__ray_call__.remote(_spoil, faults) for host in self.cluster._hosts.values()]
        ray.get(spoiling, timeout=DEADLINE_S)

    def fired(self) -> int:
        """Return how many messages have been spoiled so far."""
        hosts = self.cluster._hosts.values()
        asked = [host.__ray_call__.options(concurrency_group="control").remote(_fired) for host in hosts]
        return sum(ray.get(asked, timeout=DEADLINE_S))


def _spoil(host: Host, faults: Mapping[str, Sequence[Fault]]) -> None:
    for edge, inbox in host.actor.inboxes.items():
        assert inbox.port is not None
        inbox.port = FaultyPort(inbox.port, faults[edge])


def _fired(host: Host) -> int:
    ports = [inbox.port for inbox in host.actor.inboxes.values()]
    return sum(len(port.fired) for port in ports if isinstance(port, FaultyPort))


def spoil(number: int) -> Facts:
    """Messages of every edge are dropped, corrupted, late, overtaken and doubled, and a block is killed."""
    rule, actor = tuple(kills.RULES)[number % 5], f"block{number % kills.BLOCKS}"
    cluster, seen = SpoiledCluster(shared_cluster(), number), {"spoiled": 0}

    def act(run: Running) -> None:
        seen["spoiled"] = cluster.fired()
        run.signal(actor, signal.SIGKILL)

    summary, told = disturbed(lambda folder: kills.config(folder, rule, KEEPING), 100, act, cast(Cluster, cluster))
    facts = facts_of(summary, told, undisturbed(rule), 1)
    if not seen["spoiled"]:
        facts |= {"held": False, "why": "no message was spoiled"}
    return {"rule": rule} | seen | facts


def fail_calls(number: int) -> Facts:
    """Ray loses calls between actors, and answers to them, at random; needs RPC_FAILURES in the environment."""
    rule = tuple(kills.RULES)[number % 5]
    cluster = RayCluster(object_store_bytes=300 * 1024**2, keep=True)  # `act` may still ask when the run has ended
    seen = {"sessions": 0}

    def act(run: Running) -> None:
        """Count how often a consumer has asked for something again, until the run has ended."""
        while run.status()["state"] == "running":
            hosts = list(cluster._hosts.values())
            asked = [host.report.options(concurrency_group="control").remote() for host in hosts]
            ready, _ = ray.wait(asked, num_returns=len(asked), timeout=1.0)
            for ref in ready:
                with suppress(ray.exceptions.RayError):
                    sessions = sum(edge["sessions"] for edge in ray.get(ref)["receives"].values())
                    seen["sessions"] = max(seen["sessions"], sessions)
            threading.Event().wait(0.5)

    sections = {**KEEPING, "recovery": {"mode": "local", "max_failures": 50}}
    summary, told = disturbed(lambda folder: kills.config(folder, rule, sections), 1, act, cluster)
    facts = facts_of(summary, told, undisturbed(rule))
    if not seen["sessions"]:
        facts |= {"held": False, "why": "no call was lost"}
    return {"rule": rule} | seen | facts


# ---------------------------------------------------------------------- nodes and their memory


def remove_node(number: int) -> Facts:
    """One node of three goes away with what is on it; to be run with QUICK_HEALTH_CHECKS in the environment."""
    from ray.cluster_utils import Cluster as Nodes

    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        alone = {"placement": {"backend": "in_process"}}
        expected = train(large_messages(Path(folder, "run"), alone), progress=False)
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 200 * 1024**2})
    others = [nodes.add_node(num_cpus=1, object_store_memory=200 * 1024**2) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = nodes.address
    cluster = RayCluster()

    def act(run: Running) -> None:
        """Remove a node that hosts a block; the data actor may be beside it."""
        hosts = {block["node"]: block["name"] for block in run.status()["blocks"]}
        gone = next(node for node in others[number % 2 :] + others if node.node_id in hosts)
        run.told.done[hosts[gone.node_id]] = time.time()
        nodes.remove_node(gone, allow_graceful=False)

    try:
        summary, told = disturbed(lambda folder: large_messages(folder, KEEPING), 150, act, cluster)
    finally:
        ray.shutdown()
        nodes.shutdown()
    facts = facts_of(summary, told, expected)
    if not told.detected_s:
        facts |= {"held": False, "why": "no block was lost with the node"}
    return {"on_node": sorted(told.done)} | facts


def small_store(number: int) -> Facts:
    """80 MB of object store and messages of 4 MB: what is in it must fit, and nothing is spilled."""
    from ray._private.internal_api import memory_summary

    images = {"name": "generated", "shape": [2, 16, 16], "classes": 4, "size": 1408, "batch_size": 128}
    sections = {
        **KEEPING, "data": images, "network": {"name": "cnn", "channels": [32, 32, 32, 8], "blocks": 4},
        "training": {"epochs": 4}, "buffers": {"capacity": 8},
    }  # fmt: skip
    cluster = RayCluster(object_store_bytes=STORE_BYTES)
    address = ray.get_runtime_context().gcs_address  # another Ray may run on this machine
    seen: dict[str, Any] = {"most_used_mb": 0.0}

    def act(run: Running) -> None:
        while run.status()["state"] == "running":
            lines = memory_summary(address, stats_only=True).splitlines()
            used = next((line for line in lines if "Plasma memory usage" in line), "usage 0 MiB")
            seen["most_used_mb"] = max(seen["most_used_mb"], float(used.split("usage")[1].split()[0]))
            seen["spilled"] = next((line for line in lines if "Spilled" in line), None)
            threading.Event().wait(0.2)

    summary, told = disturbed(lambda folder: kills.config(folder, "dgl", sections), 3, act, cluster)
    warnings = [event for event in summary.events if event["event"] == "object store"]
    facts = facts_of(summary, told, None, 0)
    if seen.get("spilled") is not None or len(warnings) != 1 or not seen["most_used_mb"]:
        facts |= {
            "held": False,
            "why": f"spilled: {seen.get('spilled')}; {len(warnings)} warnings; {seen['most_used_mb']} MB at most",
        }
    return {"store_mb": STORE_BYTES / 1024**2, "warnings": len(warnings)} | seen | facts
