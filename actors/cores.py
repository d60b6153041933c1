"""Cores of a process's own: claimed through locked files, so processes of a machine agree without a word.

The kernel drops a lock with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path


class Cores:
    """The cores that this process keeps to.

    Args:
        folder: where the locks are; the same for all processes of the machine that should agree.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / f"unlocked-cores-{os.getuid()}"
        self._all = frozenset(os.sched_getaffinity(0))
        self._held: dict[int, int] = {}

    def claim(self, count: int) -> frozenset[int]:
        """Keep every thread of this process to `count` cores that nobody else has claimed.

        Returns:
            The cores; none if fewer are free, and then the threads may run on all, as before.
        """
        self.release()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for core in sorted(self._all):
            descriptor = os.open(self._folder / str(core), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            self._held[core] = descriptor
            if len(self._held) == count:
                _bind_all_threads(frozenset(self._held))
                return frozenset(self._held)
        self.release()
        return frozenset()

    def release(self) -> None:
        """Give the cores back; threads may run on all again."""
        if self._held:
            _bind_all_threads(self._all)
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held = {}


def _bind_all_threads(cores: frozenset[int]) -> None:
    """Threads that start later inherit this from the one that starts them."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue  # it has just ended
