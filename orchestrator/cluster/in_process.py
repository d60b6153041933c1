"""All actors in this process, advanced by turns: tests, debugging, and the reference for parity."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from actors.errors import RunError, UserError
from actors.host import Host
from actors.transport.in_process import InProcessPort
from orchestrator.cluster.contract import Assignment, Ended, Request
from orchestrator.wiring import Edge


class InProcessCluster:
    """A deterministic scheduler: each actor runs until it must wait, then the next one does."""

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}
        self._running: list[str] = []
        self._threads = torch.get_num_threads()

    def cpus_for(self, num_blocks: int, reserved: float) -> float:
        """All blocks share this process."""
        return 1.0

    def start(self, requests: Sequence[Request]) -> None:
        """Make one host per request.

        Raises:
            UserError: a GPU is asked for and none is visible.
        """
        if any(request.gpus for request in requests) and not torch.cuda.is_available():
            raise UserError(
                "placement.gpus_per_block: a GPU is asked for, this machine shows none; set placement.gpus_per_block=0"
            )
        self._hosts = {request.name: Host() for request in requests}

    def assign(self, assignments: Mapping[str, Assignment]) -> dict[str, dict[str, Any]]:
        """Build all actors."""
        return {name: self._hosts[name].assign(a.spec, a.shape) for name, a in assignments.items()}

    def connect(self, edges: Sequence[Edge]) -> None:
        """Join every inbox to its outbox."""
        for edge in edges:
            outbox = self._hosts[edge.producer].actor.outboxes[edge.name]
            self._hosts[edge.consumer].connect({edge.name: InProcessPort(outbox)})

    def launch(self) -> None:
        """Start every program at its first operation."""
        for host in self._hosts.values():
            host.actor.start()
            host.actor.times.start()
        self._running = list(self._hosts)

    def poll(self, wait_s: float) -> list[Ended]:
        """Advance the actors by turns for about `wait_s` seconds, or until one ends.

        Raises:
            RunError: no actor can advance.
        """
        until = time.monotonic() + wait_s
        was_stuck = False
        while self._running and time.monotonic() < until:
            moved = False
            for name in list(self._running):
                task = self._hosts[name].actor.task
                assert task is not None
                try:
                    while task.advance(0.0):
                        moved = True
                        if task.found_nothing:
                            break  # it looks again and again: the others' turn
                except UserError as error:
                    self._running.remove(name)
                    return [Ended(name, reason=str(error), is_mistake=True)]
                except Exception as error:
                    self._running.remove(name)
                    return [Ended(name, reason=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())]
                if task.is_done:
                    self._running.remove(name)
                    return [Ended(name, facts=self._hosts[name].actor.finish())]
            if not moved and was_stuck:  # in the first such turn, consumers may still have acknowledged something
                waits = {name: self._hosts[name].actor.task for name in self._running}
                edges = ", ".join(f"{name} on {task.waiting_on}" for name, task in waits.items() if task)
                raise RunError(f"nothing can advance: {edges}")
            was_stuck = not moved
        return []

    def reports(self) -> dict[str, dict[str, Any]]:
        """Return every actor's report."""
        return {name: host.report() for name, host in self._hosts.items()}

    def order(self, name: str, order: str, values: Mapping[str, Any] | None = None) -> None:
        """Send an order to one actor."""
        self._hosts[name].order(order, values or {})

    def close(self) -> None:
        """Forget the actors and give the process its number of threads back."""
        self._hosts, self._running = {}, []
        torch.set_num_threads(self._threads)
