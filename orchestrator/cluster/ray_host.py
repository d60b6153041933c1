"""A process of a run as a Ray actor: it holds one actor of the chain, or neighbouring ones."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from actors.chain_actor import ChainActor
from actors.errors import EdgeError, RunError
from actors.host import Host
from actors.priority import let_others_yield
from actors.spec import BlockSpec, SourceSpec
from actors.transport import direct
from actors.transport.inbox import Port
from actors.transport.outbox import Reply, Take
from actors.transport.same_node import TakeServer
from actors.transport.same_process import SameProcess, SameProcessPort
from orchestrator.cluster.probe import probe

REST_S = 60.0
"""For actors that are told to stop; they look once a second where they wait, and after a step."""


class RayHost:
    """Hosts that share a process, each with a thread of its own; they know which Ray node it is on."""

    def __init__(self) -> None:
        self._hosts = [Host()]
        self._rest = threading.Condition()
        self._num_running = 0
        self._others_yield = False
        self._server: TakeServer | None = None

    @property
    def actor(self) -> ChainActor:
        """The actor that it holds, or the first one."""
        return self._hosts[0].actor

    def assign(self, actors: Sequence[tuple[BlockSpec | SourceSpec, tuple[int, ...]]]) -> list[dict[str, Any]]:
        """Build actors in place of those before, once none of these computes; return their first reports.

        These say where consumers on the same Ray node reach them, `takes_at`; None: over Ray only. `fetches_to`: the
        device to which large tensors are fetched from others' memory; None: they come with the message.
        What is built changes torch's and Python's state of the whole process for a moment, which no block may see.

        Raises:
            RunError: one of those before does not end.
            UserError: a device's memory can't be fetched from, and shall be.
        """
        self.stop()
        with self._rest:
            if not self._rest.wait_for(lambda: self._num_running == 0, REST_S):
                raise RunError(f"an actor of process {os.getpid()} has not ended {REST_S:.0f} s after it was told to")
        fetches_to = [_prepared(spec) for spec, _ in actors]
        hosts = self._hosts[: len(actors)]
        self._hosts = hosts + [Host() for _ in range(len(actors) - len(hosts))]
        reports = [host.assign(spec, shape) for host, (spec, shape) in zip(self._hosts, actors, strict=True)]
        there = self._node() | {"takes_at": self._takes_at(actors)}
        return [report | there | {"fetches_to": device} for report, device in zip(reports, fetches_to, strict=True)]

    def _takes_at(self, actors: Sequence[tuple[BlockSpec | SourceSpec, tuple[int, ...]]]) -> str | None:
        """Return where messages of this process are served, if they are to be; only Linux has such addresses."""
        if sys.platform != "linux" or not any(spec.machine.serves_sockets for spec, _ in actors):
            return None
        self._server = self._server or TakeServer(self.take)
        return self._server.address

    def connect(self, ports: Mapping[str, Port | SameProcess | None], seat: int = 0) -> None:
        """Open an actor's incoming edges, or give them lines to other lives of their producers."""
        self._hosts[seat].connect({edge: self._line(edge, port) for edge, port in ports.items()})

    def _line(self, edge: str, port: Port | SameProcess | None) -> Port | None:
        if isinstance(port, SameProcess):
            return SameProcessPort(self._producer(edge).outboxes[edge])
        return port

    def _producer(self, edge: str) -> ChainActor:
        found = next((host.actor for host in self._hosts if edge in host.actor.outboxes), None)
        if found is None:
            raise EdgeError(f"edge {edge}: none of the actors of this process produces it")
        return found

    def run(self, life: int, seat: int = 0) -> dict[str, Any]:
        """Run an actor to its end and return its last facts, with Ray's node id.

        Args:
            life: the actor's incarnation; a call that comes after another life was built is void.
            seat: which of the actors.
        """
        actor = self._hosts[seat].actor
        if actor.life.incarnation != life:
            raise RunError(f"{actor.name}: life {life} is over")
        with self._rest:
            self._num_running += 1
        self._have_others_yield()
        try:
            return self._hosts[seat].run() | self._node()
        finally:
            with self._rest:
                self._num_running -= 1
                self._rest.notify_all()

    def _have_others_yield(self) -> None:
        """Let Ray's threads yield to the one that computes: before its first run, since it may have helpers later.

        Where several actors share the process, or one computes in several threads, some of the others compute, too, and
        they can't be told apart.
        """
        if len(self._hosts) == 1 and self.actor.machine.threads == 1 and not self._others_yield:
            self._others_yield = True
            let_others_yield()

    def watch(self, seat: int = 0) -> dict[str, Any]:
        """Return nothing once an actor is told to stop; a process that dies before makes the call fail."""
        return self._hosts[seat].watch()

    def take(self, take: Take) -> Reply:
        """Hand messages to a consumer."""
        return self._producer(take.edge).take(take)

    def take_referred(self, take: Take) -> Reply:
        """Hand messages to a consumer that fetches their large tensors from this process."""
        return self._producer(take.edge).outboxes[take.edge].take_referred(take, direct.put)

    def report(self, seat: int = 0) -> dict[str, Any]:
        """Return small facts about an actor, with Ray's node id."""
        return self._hosts[seat].report() | self._node()

    def order(self, name: str, values: Mapping[str, Any], seat: int = 0) -> None:
        """Pass an order on to an actor."""
        self._hosts[seat].order(name, values)

    def stop(self) -> None:
        """Make every actor's run end at its next wait."""
        for host in self._hosts:
            host.stop()

    def probe(self, mark: str, text: str) -> dict[str, Any]:
        """Return what this process sees of the run directory, and its versions; see `orchestrator.cluster.probe`."""
        return probe(mark, text) | self._node()

    def _node(self) -> dict[str, str]:
        return {"node": ray.get_runtime_context().get_node_id()}


def _prepared(spec: BlockSpec | SourceSpec) -> str | None:
    """Return the device of an actor whose large tensors travel straight from memory to memory, which works here."""
    if not spec.machine.is_direct:
        return None
    direct.prepare(spec.machine.device)
    return spec.machine.device


def remote_host(num_takes: int, num_seats: int = 1, *, is_direct: bool = False) -> Any:
    """Return Ray's class of processes that are never restarted by Ray.

    Args:
        num_takes: that are served at a time.
        num_seats: actors that it may hold; calls to each but the first have a thread of their own, named by `turn_of`.
        is_direct: whether tensors that it keeps can be fetched by others.
    """
    turns = {turn: 1 for turn in map(turn_of, range(num_seats)) if turn is not None}
    wrap: Any = ray.remote(  # type: ignore[call-overload]
        concurrency_groups={"io": num_takes, "control": 1, **turns}, max_restarts=0, max_task_retries=0,
        **({"enable_tensor_transport": True} if is_direct else {}),
    )  # fmt: skip
    return wrap(RayHost)


def turn_of(seat: int) -> str | None:
    """Return the concurrency group of an actor's calls that wait for its run; None: the one that Ray gives anyway."""
    return None if seat == 0 else f"seat{seat}"
