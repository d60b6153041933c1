"""The batch that a process trains on, where others can read it after the process has died."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

_BYTES = 8
"""Of a batch id; a byte follows that says whether its step is being computed."""
_NONE = -1


class StepMark:
    """A mapped file of nine bytes: a mark costs no system call, and the kernel keeps it when its writer dies."""

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, _bytes(_NONE), 0)  # a full disk refuses it here, not when the map is written to
            self._map = mmap.mmap(descriptor, _BYTES + 1)
        finally:
            os.close(descriptor)

    def set(self, batch_id: int) -> None:
        """Say that training on a batch begins."""
        self._map[:] = _bytes(batch_id)[:_BYTES] + b"\1"

    def enter(self, share: str) -> None:
        """Say what the process is busy with, as `Times` does: only what computes can die of a batch."""
        self._map[_BYTES] = share == "compute"


def open_step_mark(path: str | None) -> StepMark | None:
    """Return the mark at a path; None if there is no path, or the disk is full or read-only: training needs no mark."""
    try:
        return None if path is None else StepMark(path)
    except OSError:
        return None


def clear_step_mark(path: str) -> None:
    """Forget the batch of a life that has ended, if it has left a mark."""
    with suppress(OSError), open(path, "r+b") as file:
        file.write(_bytes(_NONE))


def _bytes(batch_id: int) -> bytes:
    return batch_id.to_bytes(_BYTES, "little", signed=True) + b"\0"


def marked_batch(path: str) -> int | None:
    """Return the batch of the last mark, None if there is none."""
    try:
        batch = int.from_bytes(Path(path).read_bytes()[:_BYTES], "little", signed=True)
    except OSError:
        return None
    return None if batch == _NONE else batch


def was_computing(path: str) -> bool:
    """Return whether the step of the last mark was being computed, and not waiting or over."""
    with suppress(OSError):
        return Path(path).read_bytes()[_BYTES:] == b"\1"
    return False
