"""An actor's place on a Ray cluster: the process, and which of the actors in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from actors.transport.direct import DirectPort
from actors.transport.inbox import Port
from actors.transport.ray_pull import RayPort
from actors.transport.same_node import SameNodePort
from actors.transport.same_process import SameProcess
from orchestrator.cluster.ray_host import turn_of

Line = Port | SameProcess | None


@dataclass(frozen=True)
class Seat:
    """Where one actor is; every method is a call and returns its reference.

    Args:
        process: handle of a `RayHost`.
        index: of the actor among those in it.
        node: Ray's id of the node where it is; empty: not known yet.
        takes_at: address of its messages for the processes of its node, if it serves them so.
        fetches_to: its device, if large tensors travel straight from memory to memory.
    """

    process: Any
    index: int = 0
    node: str = ""
    takes_at: str | None = None
    fetches_to: str | None = None

    def line_to(self, producer: Seat) -> Line:
        """Return a line for the consumer that sits here."""
        if producer.process == self.process:
            return SameProcess()
        if producer.fetches_to is not None and self.fetches_to is not None:
            return DirectPort(producer.process, self.fetches_to)
        over_ray = RayPort(producer.process)
        if producer.takes_at is None or producer.node != self.node:
            return over_ray
        return SameNodePort(producer.takes_at, over_ray)

    def found(self, report: Mapping[str, Any]) -> Seat:
        """Return the seat as the first report of the actor there tells of it."""
        return replace(self, node=report["node"], takes_at=report["takes_at"], fetches_to=report["fetches_to"])

    def connect(self, lines: Mapping[str, Line], *, at_once: bool = False) -> Any:
        """Give the actor lines to its producers, before a run that is asked for later, or `at_once` during one."""
        return (self._at_once("connect") if at_once else self._in_turn("connect"))(lines, self.index)

    def run(self, life: int) -> Any:
        """Run this life of the actor to its end."""
        return self._in_turn("run")(life, self.index)

    def watch(self) -> Any:
        """Wait, after the run, until the actor is told to stop."""
        return self._in_turn("watch")(self.index)

    def report(self) -> Any:
        """Ask for small facts."""
        return self.process.report.options(concurrency_group="control", enable_task_events=False).remote(self.index)

    def order(self, order: str, values: Mapping[str, Any]) -> Any:
        """Give the actor an order."""
        return self._at_once("order")(order, values, self.index)

    def _in_turn(self, method: str) -> Any:
        call, turn = getattr(self.process, method), turn_of(self.index)
        return call.remote if turn is None else call.options(concurrency_group=turn).remote

    def _at_once(self, method: str) -> Any:
        return getattr(self.process, method).options(concurrency_group="control").remote
