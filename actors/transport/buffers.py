"""Memory for messages that arrive: given out again as soon as nobody refers to it any more.

Freed and asked for anew with every message it lets a process grow as long as small tensors that came between are kept
for a restart: most likely the heap splits it for them, and what is left fits no further message.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque

import numpy as np
import torch
from torch import Tensor

SMALLEST_BYTES = 64 * 1024
"""Smaller ones come from the heap and go back to it."""
MOST_SIZES, MOST_FREE = 4, 4
"""How many sizes are kept at a time, and unused buffers of each."""


class Buffers:
    """Buffers of one receiving thread; they may be let go of in any other."""

    def __init__(self) -> None:
        self._free: OrderedDict[int, deque[Tensor]] = OrderedDict()

    def take(self, size: int) -> np.ndarray:
        """Return [size] bytes that nobody else uses, aligned as torch aligns its own: results of small products depend
        on it."""
        if size < SMALLEST_BYTES:
            return torch.empty(size, dtype=torch.uint8).numpy()
        free = self._of(size)
        try:
            memory = free.pop()
        except IndexError:
            memory = torch.empty(size, dtype=torch.uint8)
        given = memory.numpy()
        # It is called once neither the array nor any tensor over it is left, and keeps the memory until then. An append
        # needs no lock, which an interrupted thread might hold.
        weakref.finalize(given, free.append, memory).atexit = False
        return given

    def _of(self, size: int) -> deque[Tensor]:
        free = self._free.setdefault(size, deque(maxlen=MOST_FREE))
        self._free.move_to_end(size)
        if len(self._free) > MOST_SIZES:
            self._free.popitem(last=False)
        return free
