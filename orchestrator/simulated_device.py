"""Devices of a simulated cluster (simpy): processors that several threads share, and links between them."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from orchestrator.chain_profile import Work

SLICE_S = 0.004
"""How long a thread computes before another one that waits gets its core."""
MOST_SLICES = 50
"""Of one piece of work, so that long ones take few events."""

Happening = Generator[simpy.Event, Any, Any]


@dataclass(frozen=True)
class Link:
    """What lies between two devices: seconds until the first byte arrives, bytes per second after it."""

    latency_s: float = 0.0
    bytes_per_s: float = math.inf

    def seconds(self, num_bytes: int) -> float:
        """Return how long the link is busy with a message."""
        return num_bytes / self.bytes_per_s


class Device:
    """Cores that threads share by turns, a time slice each.

    Args:
        env: the simulation.
        cores: threads that run at the same time.
        speed: relative to the device that the work was measured on.
        num_threads: that may ever run here; as many as there are cores need not take turns.
        slowdown: how many times longer computing lasts while another thread computes, too.
    """

    def __init__(
        self, env: simpy.Environment, *, cores: int = 1, speed: float = 1.0, num_threads: int, slowdown: float = 1.0
    ) -> None:
        self.env, self.speed, self.slowdown = env, speed, slowdown
        self.busy_s = 0.0
        self._cores = simpy.Resource(env, cores) if num_threads > cores else None

    def work(self, work: Work) -> Happening:
        """Do a piece of work: the part that needs a core, then what it only waits for, such as an accelerator."""
        cpu_s, rest_s = work.cpu_s / self.speed, max(0.0, work.wall_s - work.cpu_s) / self.speed
        if self._cores is None:
            rest_s += cpu_s
            self.busy_s += rest_s
        elif cpu_s > 0.0:
            yield from self._compute(cpu_s, self._cores)
        if rest_s > 0.0:
            yield self.env.timeout(rest_s)

    def _compute(self, left_s: float, cores: simpy.Resource) -> Happening:
        """Compute for so many seconds; whoever waits gets the core after a slice.

        Short pieces run through, so that threads which began at the same time drift apart, as they do on a processor.
        """
        slice_s = max(SLICE_S, left_s / MOST_SLICES)
        while left_s > 0.0:
            with cores.request() as turn:
                yield turn
                while left_s > 0.0:
                    part_s = min(slice_s, left_s)
                    lasts_s = part_s * (self.slowdown if cores.count > 1 else 1.0)
                    self.busy_s += lasts_s
                    yield self.env.timeout(lasts_s)
                    left_s -= part_s
                    if cores.queue:
                        break
