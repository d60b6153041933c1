"""The contract of a cluster: it starts hosts, gives them actors, connects and runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.spec import BlockSpec, SourceSpec
from orchestrator.wiring import Edge


@dataclass(frozen=True)
class Request:
    """What one actor asks of its machine.

    `num_takes`: calls of its consumers that may wait in it at the same time.
    """

    name: str
    cpus: float
    gpus: float = 0.0
    num_takes: int = 2


@dataclass(frozen=True)
class Assignment:
    """An actor to build: its spec and the shape of its input."""

    spec: BlockSpec | SourceSpec
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ended:
    """An actor whose `run` returned (`facts`) or failed (`reason`, one line, and `traceback`).

    `is_mistake`: the reason is a sentence for the user, who can fix it.
    """

    name: str
    facts: Mapping[str, Any] | None = None
    reason: str = ""
    traceback: str = ""
    is_mistake: bool = False


class Cluster(Protocol):
    """Owns every process of a run; nothing outlives `close`."""

    def cpus_for(self, num_blocks: int, reserved: float) -> float:
        """Return the CPUs each block gets when the user leaves it to us; a fraction if there are too few."""
        ...

    def start(self, requests: Sequence[Request]) -> None:
        """Start one host per request, placed in the order given."""
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

    def poll(self, wait_s: float) -> list[Ended]:
        """Return the actors that ended, waiting up to `wait_s` for the first."""
        ...

    def reports(self) -> dict[str, dict[str, Any]]:
        """Return a report of every actor that answers in time."""
        ...

    def order(self, name: str, order: str, values: Mapping[str, Any] | None = None) -> None:
        """Send an order to one actor."""
        ...

    def close(self) -> None:
        """End every process that this cluster started."""
        ...
