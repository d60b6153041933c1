"""The batch that a process trains on, where others can read it after the process has died."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_BYTES = 8
_NONE = -1


class StepMark:
    """A mapped file of eight bytes: a mark costs no system call, and the kernel keeps it when its writer dies."""

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _BYTES)
            self._map = mmap.mmap(descriptor, _BYTES)
        finally:
            os.close(descriptor)
        self.set(_NONE)

    def set(self, batch_id: int) -> None:
        """Say that training on a batch begins."""
        self._map[:] = batch_id.to_bytes(_BYTES, "little", signed=True)


def marked_batch(path: str) -> int | None:
    """Return the batch of the last mark, None if there is none."""
    try:
        batch = int.from_bytes(Path(path).read_bytes(), "little", signed=True)
    except OSError:
        return None
    return None if batch == _NONE else batch
