"""Host: a place in a process that can be given an actor, and later another one.

A process with torch imported takes seconds to start, an actor in it milliseconds. The cluster starts
hosts; a run assigns actors to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.block_actor import BlockActor
from actors.chain_actor import ChainActor
from actors.cores import Cores
from actors.data_actor import DataActor
from actors.errors import RunError
from actors.spec import BlockSpec, Machine, SourceSpec
from actors.transport.inbox import Port
from actors.transport.outbox import Reply, Take


class Host:
    """Holds one actor; every method is one remote call."""

    def __init__(self) -> None:
        self._actor: ChainActor | None = None
        self._cores: Cores | None = None

    def assign(self, spec: BlockSpec | SourceSpec, shape: tuple[int, ...] = ()) -> dict[str, Any]:
        """Build the actor that `spec` describes in place of the one before; return its first report."""
        self.stop()
        self._pin(spec.machine)
        self._actor = DataActor(spec) if isinstance(spec, SourceSpec) else BlockActor(spec, shape)
        return self._actor.report()

    def _pin(self, machine: Machine) -> None:
        if self._cores is not None:
            self._cores.release()
        if machine.pins:
            self._cores = self._cores or Cores()
            self._cores.claim(machine.threads)

    def connect(self, ports: Mapping[str, Port | None]) -> None:
        """Open the actor's incoming edges, or give them lines to other lives of their producers."""
        self.actor.connect(ports)

    def run(self) -> dict[str, Any]:
        """Run the actor to its end."""
        return self.actor.run()

    def watch(self) -> dict[str, Any]:
        """Return nothing once the actor is told to stop; a process that dies before makes the call fail."""
        self.actor.wait_for_stop()
        return {}

    def take(self, take: Take) -> Reply:
        """Hand messages of the actor to a consumer."""
        return self.actor.take(take)

    def report(self) -> dict[str, Any]:
        """Return small facts about the actor."""
        return self.actor.report()

    def order(self, name: str, values: Mapping[str, Any]) -> None:
        """Pass an order on."""
        self.actor.order(name, values)

    def stop(self) -> None:
        """Make the actor's run end at its next wait, if there is one."""
        if self._actor is not None:
            self._actor.stop()

    @property
    def actor(self) -> ChainActor:
        """The assigned actor."""
        if self._actor is None:
            raise RunError("this host has no actor yet; assign one first")
        return self._actor
