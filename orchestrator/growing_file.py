"""A file that only grows. What a full disk refuses waits, and is written as soon as there is room."""

from __future__ import annotations

import os
from pathlib import Path

MOST_WAITING = 4 * 1024**2
"""Bytes that may wait; what comes then is left out, so that memory stays bounded."""


class GrowingFile:
    """Appends whole records, or parts of them that the next call completes.

    Args:
        path: made with its folder.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._waiting = bytearray()

    def write(self, record: bytes) -> None:
        """Take a record; `flush` writes it."""
        if len(self._waiting) + len(record) <= MOST_WAITING:
            self._waiting += record

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: the disk refuses it; what is left waits on.
        """
        while self._waiting:
            written = os.write(self._descriptor, self._waiting)
            del self._waiting[:written]

    def close(self) -> None:
        """Close the file; what still waits is lost."""
        os.close(self._descriptor)
