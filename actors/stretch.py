"""Simulated slowness: stretches what a block computes, so that real learning runs on simulated devices."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Slowness:
    """How much longer a block's computing lasts.

    Args:
        factor: a slow device; every step lasts `factor` times as long.
        pad: as if every device were that much slower than this processor, which rests meanwhile.
        jitter: relative spread of a step's length, lognormal. No step lasts less than its computing: where `factor`
            times `pad` is near 1 the mean is longer than without jitter, elsewhere it is the same.
        seed: of the jitter.
    """

    factor: float = 1.0
    pad: float = 1.0
    jitter: float = 0.0
    seed: int = 0


class Stretch:
    """Sleeps after a piece of computing until it has lasted as long as the slowness says."""

    def __init__(self, slowness: Slowness, sleep: Callable[[float], None] = time.sleep) -> None:
        self.slowness = slowness
        self._sleep = sleep
        self._draw = random.Random(slowness.seed)

    def after(self, elapsed_s: float) -> None:
        """Sleep for what is left of a piece that has taken `elapsed_s` seconds of computing."""
        own = self.slowness
        longer = own.factor * own.pad
        if own.jitter:
            longer *= self._draw.lognormvariate(-(own.jitter**2) / 2, own.jitter)
        if longer > 1.0:
            self._sleep(elapsed_s * (longer - 1.0))
