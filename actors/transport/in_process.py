"""Carrier within one process: a take is a direct call that never waits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from actors.errors import EdgeError
from actors.transport.outbox import Outbox, Reply, Take


class InProcessPort:
    """Line to an outbox of the same process; calls are answered when they are collected."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.is_cut = False
        """Set when the producer's process is said to have died."""
        self._calls: list[Take] = []

    def request(self, take: Take) -> None:
        """Remember the call; what it tells takes effect at once if it asks for nothing."""
        self._calls.append(take)
        if take.limit == 0 and not self.is_cut:
            with suppress(EdgeError):  # raised again when the call is collected
                self.outbox.take_here(take)

    def collect(self, wait_s: float) -> list[tuple[Take, Reply | Exception]]:
        """Make every call now; those with nothing to return stay outstanding."""
        if self.is_cut:
            gone, self._calls = self._calls, []
            return [(take, ConnectionError("the producer's process is gone")) for take in gone]
        ended: list[tuple[Take, Reply | Exception]] = []
        still: list[Take] = []
        for take in self._calls:
            try:
                reply = self.outbox.take_here(replace(take, wait_s=0.0))
            except Exception as error:
                ended.append((take, error))
                continue
            if reply.packets or reply.end is not None or take.limit == 0:
                ended.append((take, reply))
            else:
                still.append(take)
        self._calls = still
        return ended
