"""Torch's process-wide random generators, used by one thread at a time.

Blocks that share a process compute in threads of their own; a seed and the draws after it must not be torn apart.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

DRAWING = threading.RLock()
"""Held while somebody seeds a process-wide generator and draws from it."""


@contextmanager
def forked_draws() -> Iterator[None]:
    """Let the body of a `with` seed and draw as it likes; the CPU's generator is as it was afterwards."""
    with DRAWING, torch.random.fork_rng(devices=[]):
        yield
