"""The contract of a cluster: it starts hosts, gives them actors, connects and runs them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from actors.spec import BlockSpec, SourceSpec
from orchestrator.measures import Measure
from orchestrator.wiring import Edge


@dataclass(frozen=True)
class Request:
    """What one process asks of its machine.

    `names`: of the actors in it. `num_takes`: calls of their consumers that may wait in it at the same time.
    `accelerator_type`: kind of GPU. `labels`: of the nodes that may host it. `resources`: custom ones that it takes.
    """

    names: tuple[str, ...]
    cpus: float
    gpus: float = 0.0
    num_takes: int = 2
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_anywhere(self) -> bool:
        """Whether any node can host it."""
        return not (self.gpus or self.accelerator_type or self.labels or self.resources)


@dataclass(frozen=True)
class Assignment:
    """An actor to build: its spec and the shape of its input."""

    spec: BlockSpec | SourceSpec
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ended:
    """An actor whose `run` returned (`facts`) or failed (`reason`, one line, and `traceback`).

    `is_mistake`: the reason is a sentence for the user, who can fix it.
    `died`: its process is gone; else its program has raised.
    `node`: where its process was, if that is not the driver's node.
    """

    name: str
    facts: Mapping[str, Any] | None = None
    reason: str = ""
    traceback: str = ""
    is_mistake: bool = False
    died: bool = False
    node: str = ""


@dataclass(frozen=True)
class Joined:
    """An actor that was replaced and runs again, connected with its neighbours."""

    name: str


class Cluster(Protocol):
    """Owns every process of a run; nothing outlives `close`."""

    def cpus_for(self, num_blocks: int, reserved: float) -> float:
        """Return the CPUs each block gets when the user leaves it to us; a fraction if there are too few."""
        ...

    def store_bytes(self) -> int | None:
        """Return the size of the smallest node's object store; None if messages do not travel through one."""
        ...

    def start(self, requests: Sequence[Request], spares: int = 0) -> None:
        """Start one process per request, placed in the order given, and `spares` that wait to replace one."""
        ...

    def check(self, run_dir: Path) -> None:
        """Refuse hosts that don't see the run directory, or run other versions than this process.

        Raises:
            UserError: names the first node.
        """
        ...

    def assign(self, assignments: Mapping[str, Assignment]) -> dict[str, dict[str, Any]]:
        """Build all actors, at the same time; return their first reports."""
        ...

    def connect(self, edges: Sequence[Edge]) -> None:
        """Open every edge at its consumer."""
        ...

    def launch(self) -> None:
        """Start every actor's program."""
        ...

    def poll(self, wait_s: float) -> list[Ended | Joined]:
        """Return the actors that ended or joined again, waiting up to `wait_s` for the first."""
        ...

    def replace(self, assignments: Mapping[str, Assignment], well: Collection[str] = ()) -> None:
        """Begin to put other lives of actors in the places of these; `poll` tells when each has joined.

        None of them is joined with a life that is to be replaced, too. `well`: those whose processes may stay. Actors
        that share a process are replaced together.
        """
        ...

    def reports(self) -> dict[str, dict[str, Any]]:
        """Return the reports that have come since the last call; an actor that hangs sends none."""
        ...

    @property
    def has_news(self) -> bool:
        """Whether reports should be read now, since an actor has written a snapshot."""
        ...

    def leaving(self) -> Mapping[str, float]:
        """Return the nodes that have announced their end, and how many seconds each has left."""
        ...

    def astray(self, nodes: Mapping[str, str]) -> Sequence[str]:
        """Return the actors that should move, given the nodes where they are.

        These are not where their resources are reserved, or they lost their node, share another's since, and could
        have one that came.
        """
        ...

    def publish(self, measures: Sequence[Measure]) -> None:
        """Show a monitor the newest measures, if there is a way to."""
        ...

    def order(self, name: str, order: str, values: Mapping[str, Any] | None = None) -> None:
        """Send an order to one actor."""
        ...

    def close(self) -> None:
        """End every process that this cluster started."""
        ...
