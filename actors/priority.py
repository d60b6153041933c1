"""Threads that serve messages yield to those that compute, of this and of other blocks.

A block that wakes up to compute then gets a core at once instead of after somebody's copying. On a machine with a core
for every thread nothing changes.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

YIELDING = 5
"""Niceness of threads that serve, above that of the process: where both want a core, they get a third as much."""


_COMPUTING = os.getpriority(os.PRIO_PROCESS, os.getpid()) if sys.platform == "linux" else 0
"""Niceness of the process before any of its threads yields; a new thread has that of the one that starts it."""


def yield_to_computing() -> None:
    """Let this thread yield from now on; there is no way back without privileges."""
    _yield(threading.get_native_id())


def let_others_yield() -> None:
    """Let every other thread that this process has so far yield to this one."""
    if sys.platform == "linux":
        for name in os.listdir("/proc/self/task"):
            if int(name) != threading.get_native_id():
                _yield(int(name))


def _yield(thread: int) -> None:
    """Only Linux has a niceness per thread."""
    if sys.platform == "linux":
        with suppress(OSError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, thread, min(19, _COMPUTING + YIELDING))
