"""What processes hold in memory: their own, from the kernel's books, and Ray's object store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from orchestrator.cluster.contract import Request
from orchestrator.cluster.ray_cluster import RayCluster

EVERY_S = 0.1
DEADLINE_S = 60.0


def private_bytes(pid: int | None = None) -> int:
    """Return the anonymous memory of a process: what it has allocated itself, no libraries and no shared memory."""
    rollup = Path(f"/proc/{pid or os.getpid()}/smaps_rollup").read_text()
    return next(1024 * int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Anonymous:"))


class Peaks:
    """Looks at some figures again and again, in a thread of its own, and keeps the largest of each.

    Args:
        figures: name -> what returns the figure, in bytes; a process that has ended counts no more.
    """

    def __init__(self, figures: Mapping[str, Callable[[], int]]) -> None:
        self.bytes = dict.fromkeys(figures, 0)
        self._figures = figures
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(EVERY_S):
            for name, figure in self._figures.items():
                try:
                    self.bytes[name] = max(self.bytes[name], figure())
                except (OSError, StopIteration):
                    continue  # its process has ended


def object_store_bytes() -> int:
    """Return what Ray's object store on this machine holds, in bytes."""
    has = ray.cluster_resources().get("object_store_memory", 0.0)
    return int(has - ray.available_resources().get("object_store_memory", has))


class MeasuredCluster(RayCluster):
    """A cluster that looks at the memory of its hosts from their start, before they are given an actor, to its end."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.baseline: dict[str, int] = {}
        self.peaks: Peaks | None = None

    def start(self, requests: Sequence[Request], spares: int = 0) -> None:
        """Start the hosts and, once all have imported what they need, note what they hold."""
        super().start(requests, spares)
        asked = {name: host.__ray_call__.remote(_process) for name, host in self._hosts.items()}
        found = {name: ray.get(ref, timeout=DEADLINE_S) for name, ref in asked.items()}
        self.baseline = {name: held for name, (_, held) in found.items()}
        figures: dict[str, Callable[[], int]] = {
            name: lambda pid=pid: private_bytes(pid) for name, (pid, _) in found.items()
        }
        self.peaks = Peaks({**figures, "object store": object_store_bytes})
        self.peaks.__enter__()

    def close(self) -> None:
        """Look no more, then close the cluster."""
        if self.peaks is not None:
            self.peaks.__exit__()
        super().close()

    def above_baseline(self) -> dict[str, int]:
        """Return the most that each host held above what it had imported, and the most of the object store."""
        assert self.peaks is not None
        return {name: most - self.baseline.get(name, 0) for name, most in self.peaks.bytes.items()}


def _process(host: Any) -> tuple[int, int]:
    """Return process id and private memory; runs in the host."""
    return os.getpid(), private_bytes()
