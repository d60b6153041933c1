"""Borrowing the process-wide random generators: code that can only draw from them (torchvision's transforms,
a user's dataset) gets a seed of ours, and everybody else finds them as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, numpy's legacy one and `random` in the block; restore all three after."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    # torch.manual_seed would reseed the accelerators too, which nobody here restores.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
