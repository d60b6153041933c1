"""How long a task has waited for each of its edges, a wait that still goes on included."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Waits:
    """Seconds by edge; written by the thread that waits, read by others.

    Args:
        clock: what it reads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: dict[str, float] = {}
        self._now: tuple[str, ...] = ()
        self._since = 0.0
        self._changing = threading.Lock()

    @contextmanager
    def on(self, *edges: str) -> Iterator[None]:
        """Count the body of a `with` as a wait on each of `edges`, any of which could end it."""
        with self._changing:
            self._now, self._since = edges, self._clock()
        try:
            yield
        finally:
            with self._changing:
                for edge in edges:
                    self._ended[edge] = self._ended.get(edge, 0.0) + self._clock() - self._since
                self._now = ()

    def seconds(self, edge: str) -> float:
        """Return how long has been waited on an edge so far."""
        with self._changing:
            going_on = self._clock() - self._since if edge in self._now else 0.0
            return self._ended.get(edge, 0.0) + going_on
