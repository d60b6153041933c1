"""A Ray cluster over hosts of their own (`tests/network_hosts.py`): one node per host, head and driver on host 0."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.network_hosts import NetworkHosts

PORT = 6379
START_DEADLINE_S = 110.0
POLL_S = 0.2
ATTEMPTS = 3
DEATH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_timeout_ms": 4000,
         "health_check_failure_threshold": 3}  # fmt: skip
"""A host that is silent for about 12 s is dead; Ray's own figures add up to a minute."""
WAIT = """
import sys, time
from ray._private.state import GlobalState
from ray._raylet import GcsClientOptions
address, wanted, deadline_s = sys.argv[1], sys.argv[2].split(","), float(sys.argv[3])
over, found = time.monotonic() + deadline_s, None
while found != wanted:
    assert time.monotonic() < over, f"alive: {found}, wanted: {wanted}"
    try:
        state = GlobalState()
        state._initialize_global_state(
            GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
        )
        found = sorted(node["NodeManagerAddress"] for node in state.node_table() if node["Alive"])
    except Exception as error:
        found = repr(error)
    time.sleep(0.2)
"""
"""Asks the head without becoming a driver."""


class RayHosts:
    """A Ray node with four CPUs on every host; `start` brings up those that are not there.

    `folder` is the same everywhere; `hidden` and Ray's own folder in it are disks of their own on every host but
    the first, as folders that are not shared would be. What lies in
    `packages` is installed on every host but the first.
    """

    def __init__(self, count: int) -> None:
        self.hosts = NetworkHosts(count)
        self.folder = Path(tempfile.mkdtemp(prefix="ulh-", dir="/tmp"))  # Ray's socket names must stay short
        self.hidden, self.packages = self.folder / "hidden", self.folder / "packages"
        self.hidden.mkdir()
        (self.folder / "ray").mkdir()
        self.packages.mkdir()
        self._token = uuid.uuid4().hex
        self._nodes: dict[int, subprocess.Popen[Any]] = {}
        self.address = f"{self.hosts.address(0)}:{PORT}"

    def start(self) -> None:
        """Start the nodes that don't run, and wait until the head knows all of them.

        A node gives up when it has not come up within Ray's own 30 s, as on a busy machine; then it is started again.
        """
        if self.has_ended(0):
            self._start_node(0)
            assert self._are_alive([0]), self.logs()
        for _ in range(ATTEMPTS):
            for host in range(1, self.hosts.count):
                if self.has_ended(host):
                    self.hosts.power_off(host)  # what is left of the node before
                    self._start_node(host)
            if self._are_alive(list(range(self.hosts.count))):
                return
        raise AssertionError(self.logs())

    def _start_node(self, host: int) -> None:
        head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self.folder / 'ray'}",
                f"--system-config={json.dumps(DEATH)}"]  # fmt: skip
        words = [
            *(head if host == 0 else [f"--address={self.address}"]),
            f"--node-ip-address={self.hosts.address(host)}", "--block", "--num-cpus=4",
            f"--resources={json.dumps({f'host{host}': 4})}",
            "--object-store-memory=150000000", "--disable-usage-stats",
        ]  # fmt: skip
        own = f'mount -t tmpfs tmpfs {self.hidden} && mount -t tmpfs tmpfs {self.folder / "ray"} && exec "$0" "$@"'
        hides = ["sh", "-c", own] if host else []
        command = [*hides, sys.executable, "-m", "ray.scripts.scripts", "start", *words]
        paths = [str(self.packages), str(ROOT)] if host else [str(ROOT)]
        with open(self.folder / f"node{host}.log", "ab") as out:
            self._nodes[host] = self.hosts.start(host, command, self.environment(*paths), out)

    def has_ended(self, host: int) -> bool:
        """Whether a host has no node."""
        return host not in self._nodes or self._nodes[host].poll() is not None

    def terminate(self, host: int) -> None:
        """Tell a host's node to end, as a preempted machine does; it announces that, and has 30 s."""
        self._nodes[host].terminate()

    def run(self, words: list[str], log: str) -> subprocess.Popen[Any]:
        """Start Python with these words in host 0."""
        with open(self.folder / log, "wb") as out:
            return self.hosts.start(0, [sys.executable, *words], self.environment(str(ROOT)), out)

    def environment(self, *paths: str) -> dict[str, str]:
        """The variables of a process of this cluster that finds packages there first."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "UNLOCKED"))}
        return plain | {
            "PYTHONPATH": os.pathsep.join(paths), "RAY_ADDRESS": self.address, "RAY_worker_niceness": "0",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token,
            "RAY_prestart_worker_first_driver": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def host_of(self, pid: int) -> int | None:
        """The host that a process runs on; None if it has ended."""
        return next((host for host in range(self.hosts.count) if pid in self.hosts.processes(host)), None)

    def _are_alive(self, hosts: list[int]) -> bool:
        """Wait in host 0 until exactly these hosts' nodes are alive; False as soon as one of them has ended."""
        addresses = ",".join(sorted(self.hosts.address(host) for host in hosts))
        waiting = self.run(["-c", WAIT, self.address, addresses, str(START_DEADLINE_S)], "wait.log")
        while waiting.poll() is None:
            if any(self.has_ended(host) for host in hosts):
                waiting.kill()
                waiting.wait()
                return False
            time.sleep(POLL_S)
        return waiting.returncode == 0

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        """End everything and remove the folder."""
        self.hosts.end()
        shutil.rmtree(self.folder, ignore_errors=True)
