"""How much slower a core is while the others compute, too: caches, memory, clock rates, sibling threads, quotas."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn.functional import conv2d

ROUNDS = 3
STRETCH_S = 0.15
"""Each round computes so long alone, and as long on all cores."""


def slowdown(num_threads: int) -> float:
    """Return the time of a step beside num_threads - 1 others, over the time that it takes alone; at least 1.

    Args:
        num_threads: that compute at the same time, at most one per core.
    """
    if num_threads < 2:
        return 1.0
    ratios = []
    for _ in range(ROUNDS):
        alone = _together(1)
        ratios.append(_together(num_threads) / alone)
    return max(1.0, median(ratios))


def _together(num_threads: int) -> float:
    """Return the median seconds of a step in each of several threads that compute at the same time."""
    taken: list[list[float]] = [[] for _ in range(num_threads)]
    barrier = threading.Barrier(num_threads)
    threads = [threading.Thread(target=_compute, args=(each, barrier.wait), daemon=True) for each in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return median(seconds for each in taken for seconds in each)


def _compute(taken: list[float], wait: Callable[[], int]) -> None:
    """A convolution of a few milliseconds, again and again; torch lets go of the interpreter meanwhile."""
    torch.set_num_threads(1)
    x, weight = torch.randn(32, 32, 28, 28), torch.randn(32, 32, 3, 3)
    conv2d(x, weight, padding=1)
    wait()
    until = time.perf_counter() + STRETCH_S
    while (begun := time.perf_counter()) < until:
        conv2d(x, weight, padding=1)
        taken.append(time.perf_counter() - begun)
