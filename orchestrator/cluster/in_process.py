"""All actors in this process, advanced by turns: tests, debugging, and the reference for parity."""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from actors.errors import RunError, UserError
from actors.fail_points import ProcessKilled
from actors.host import Host
from actors.transport.in_process import InProcessPort
from orchestrator.cluster.contract import Assignment, Ended, Joined, Request
from orchestrator.measures import Measure
from orchestrator.wiring import Edge


class InProcessCluster:
    """A deterministic scheduler: each actor runs until it must wait, then the next one does."""

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}
        self._edges: list[Edge] = []
        self._ports: dict[str, InProcessPort] = {}
        self._running: list[str] = []
        self._lost: set[str] = set()
        self._events: list[Ended | Joined] = []
        self._num_snapshots = 0
        self._threads = torch.get_num_threads()

    def cpus_for(self, num_blocks: int, reserved: float) -> float:
        """All blocks share this process."""
        return 1.0

    def store_bytes(self) -> None:
        """Messages stay where they are."""

    def start(self, requests: Sequence[Request], spares: int = 0) -> None:
        """Make one host per actor.

        Raises:
            UserError: a GPU is asked for and none is visible.
        """
        if any(request.gpus for request in requests) and not torch.cuda.is_available():
            raise UserError(
                "placement.gpus_per_block: a GPU is asked for, this machine shows none; set placement.gpus_per_block=0"
            )
        self._hosts = {name: Host() for request in requests for name in request.names}

    def check(self, run_dir: Path) -> None:
        """All hosts are this process."""

    def leaving(self) -> Mapping[str, float]:
        """The only machine stays."""
        return {}

    def astray(self, nodes: Mapping[str, str]) -> Sequence[str]:
        """There is one place."""
        return ()

    def publish(self, measures: Sequence[Measure]) -> None:
        """Nobody watches a process from outside."""

    def assign(self, assignments: Mapping[str, Assignment]) -> dict[str, dict[str, Any]]:
        """Build all actors."""
        return {name: self._hosts[name].assign(a.spec, a.shape) for name, a in assignments.items()}

    def connect(self, edges: Sequence[Edge]) -> None:
        """Join every inbox to its outbox."""
        self._edges = list(edges)
        for edge in edges:
            self._join(edge)

    def _join(self, edge: Edge) -> None:
        if edge.producer in self._lost or edge.consumer in self._lost:
            return
        port = self._ports[edge.name] = InProcessPort(self._hosts[edge.producer].actor.outboxes[edge.name])
        self._hosts[edge.consumer].connect({edge.name: port})

    def launch(self) -> None:
        """Start every program at its first operation."""
        for name in self._hosts:
            self._launch(name)

    def _launch(self, name: str) -> None:
        self._hosts[name].actor.start()
        self._hosts[name].actor.times.start()
        self._running.append(name)

    def poll(self, wait_s: float) -> list[Ended | Joined]:
        """Advance the actors by turns for about `wait_s` seconds, until one ends or writes a snapshot.

        Raises:
            RunError: no actor can advance.
        """
        until, num_idle = time.monotonic() + wait_s, 0
        while self._running and time.monotonic() < until and not self._events and not self.has_news:
            moved = False
            for name in list(self._running):
                moved = self._advance(name) or moved
                if self._events:
                    break
            num_idle = 0 if moved else num_idle + 1
            if num_idle > 1 and not self._events and not self._lost:  # a first idle round may acknowledge messages
                waits = {name: self._hosts[name].actor.task for name in self._running}
                edges = ", ".join(f"{name} on {task.waiting_on}" for name, task in waits.items() if task)
                raise RunError(f"nothing can advance: {edges}")
            if num_idle > 1:
                break
        events, self._events = self._events, []
        return events

    def _advance(self, name: str) -> bool:
        """Let one actor do what it can; its end is an event."""
        task, moved = self._hosts[name].actor.task, False
        assert task is not None
        try:
            while task.advance(0.0):
                moved = True
                if task.found_nothing or self.has_news:
                    break  # it looks again and again, or there is something to read: the others' turn
        except ProcessKilled as error:
            self._die(name, str(error))
        except UserError as error:
            self._end(Ended(name, reason=str(error), is_mistake=True))
        except Exception as error:
            self._end(Ended(name, reason=f"{type(error).__name__}: {error}", traceback=traceback.format_exc()))
        if task.is_done and name in self._running:
            self._end(Ended(name, facts=self._hosts[name].actor.finish()))
        return moved

    def _end(self, ended: Ended) -> None:
        if ended.facts is None:
            self._lose(ended.name)
        self._running = [name for name in self._running if name != ended.name]
        self._events.append(ended)

    def _die(self, name: str, how: str) -> None:
        self._end(Ended(name, reason=f"its process died ({how})", died=True))

    def _lose(self, name: str) -> None:
        """What a lost actor holds can't be taken any more."""
        self._lost.add(name)
        for edge in self._edges:
            if edge.producer == name and edge.name in self._ports:
                self._ports[edge.name].is_cut = True

    def replace(self, assignments: Mapping[str, Assignment], well: Collection[str] = ()) -> None:
        """Build other lives of actors and join them with their neighbours."""
        for name in assignments:
            self._lose(name)
            self._running = [running for running in self._running if running != name]
        for name, assignment in assignments.items():
            self._hosts[name] = Host()
            try:
                self._hosts[name].assign(assignment.spec, assignment.shape)
            except ProcessKilled as error:
                self._die(name, str(error))
                continue
            self._lost.discard(name)
            for edge in self._edges:
                if edge.consumer == name:
                    self._hosts[name].connect({edge.name: None})
            for edge in self._edges:
                if name in (edge.producer, edge.consumer):
                    self._join(edge)
            self._launch(name)
            self._events.append(Joined(name))

    def reports(self) -> dict[str, dict[str, Any]]:
        """Return every actor's report."""
        self._num_snapshots = self._count_snapshots()
        return {name: host.report() for name, host in self._hosts.items() if name not in self._lost}

    @property
    def has_news(self) -> bool:
        """Whether an actor has written a snapshot since reports were read."""
        return self._count_snapshots() != self._num_snapshots

    def _count_snapshots(self) -> int:
        actors = [host.actor for name, host in self._hosts.items() if name not in self._lost]
        return sum(actor.num_snapshots for actor in actors)

    def order(self, name: str, order: str, values: Mapping[str, Any] | None = None) -> None:
        """Send an order to one actor."""
        if name not in self._lost:
            self._hosts[name].order(order, values or {})

    def close(self) -> None:
        """Forget the actors and give the process its number of threads back."""
        self._hosts, self._running, self._edges, self._ports, self._lost = {}, [], [], {}, set()
        torch.set_num_threads(self._threads)
