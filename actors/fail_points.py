"""Named places at which a test or a user lets a process die, to see that nothing is lost.

`faults.kill` names them; a place is a logical point of a program, never a moment.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Point = Literal["step", "snapshot", "half written", "before rename", "written", "restored", "pruning", "half pruned"]


class ProcessKilled(BaseException):
    """Stands for the death of a process where several actors share one."""


@dataclass(frozen=True)
class Kill:
    """Where a process dies.

    Args:
        actor: name of a block, `source`, or `orchestrator`.
        at: `step`: before a batch is trained on; `snapshot`: when its order is obeyed; `half written`, `before
            rename`, `written`: of the file that is being written; `restored`: when a new life has read its snapshot;
            `pruning`, `half pruned`: before what a checkpoint makes superfluous is deleted, and after one folder of it.
        batch: batch id or position; None: the first time that the place is reached.
        lives: how many lives of the actor die so.
    """

    actor: str
    at: Point
    batch: int | None = None
    lives: int = 1


@dataclass(frozen=True)
class FailPoints:
    """The places at which this life of an actor dies.

    Args:
        kills: of this actor.
        life: how many lives of it came before.
        is_shared: whether other actors live in this process, so that its death is only told to the cluster.
        position: of the file that is being written.
    """

    kills: Sequence[Kill] = ()
    life: int = 0
    is_shared: bool = False
    position: int | None = None

    def at(self, position: int) -> FailPoints:
        """Return the same places for what concerns a position."""
        return replace(self, position=position) if self.kills else self

    def reach(self, point: Point, batch: int | None = None) -> None:
        """Die if this is such a place.

        Raises:
            ProcessKilled: in place of dying, where the process is shared.
        """
        where = self.position if batch is None else batch
        for kill in self.kills:
            if kill.at == point and self.life < kill.lives and kill.batch in (None, where):
                if self.is_shared:
                    raise ProcessKilled(f"{kill.actor} at {point}, batch {where}")
                os.kill(os.getpid(), signal.SIGKILL)


NO_FAIL_POINTS = FailPoints()
