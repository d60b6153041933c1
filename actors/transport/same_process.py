"""Carrier between threads of one process: a take is a direct call that waits where there is nothing to do else."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from actors.transport.in_process import InProcessPort
from actors.transport.outbox import Reply, Take

IDLE_S = 0.02


@dataclass(frozen=True)
class SameProcess:
    """Stands for a line to an actor of the consumer's own process, which only that process can make."""


class SameProcessPort(InProcessPort):
    """Line to an outbox that another thread of this process fills; what lies on a device stays there."""

    def collect(self, wait_s: float) -> list[tuple[Take, Reply | Exception]]:
        """Make every call now; if none returns anything, wait for the first one's messages up to `wait_s`."""
        ended = super().collect(0.0)
        if ended or wait_s <= 0.0:
            return ended
        if not self._calls:
            time.sleep(min(wait_s, IDLE_S))  # else its consumer would ask again and again
            return []
        take = self._calls[0]
        try:
            reply = self.outbox.take_here(replace(take, wait_s=wait_s))
        except Exception as error:
            del self._calls[0]
            return [(take, error)]
        if not reply.packets and reply.end is None:
            return []
        del self._calls[0]
        return [(take, reply)]
