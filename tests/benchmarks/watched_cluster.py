"""A Ray cluster with a referee: edges may be spoiled, and every use is timed where it happens.

What a run reports of its staleness is what each consumer knows of its producer. The referee notes on one clock,
that of this machine, when each block began to train on a message and when it finished a use, and counts afterwards.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.block_actor import BlockActor
from actors.host import Host
from actors.messages import Message
from actors.transport.faulty import Fault, FaultyPort
from orchestrator.cluster.contract import Ended
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.wiring import Edge

DEADLINE_S = 60.0


@dataclass
class Seen:
    """What happened in one host.

    Args:
        started: when training on a message began, and the message's version.
        finished: when each use was finished.
        fired: edge -> action -> how often it happened.
        overtaken: edge -> replies that came after a later one.
    """

    started: list[tuple[float, int]] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    fired: dict[str, Counter[str]] = field(default_factory=dict)
    overtaken: dict[str, int] = field(default_factory=dict)


class WatchedCluster:
    """A cluster whose hosts are watched; it takes the place of the one that it watches.

    Args:
        cluster: what it watches.
        faults: the faults of an edge, by its name.
    """

    def __init__(self, cluster: RayCluster, faults: Callable[[str], Sequence[Fault]] = lambda edge: ()) -> None:
        self.cluster, self.faults = cluster, faults
        self.planned: dict[str, Sequence[Fault]] = {}
        self.seen: dict[str, Seen] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cluster, name)

    def connect(self, edges: Sequence[Edge]) -> None:
        """Open every edge, spoil those that have faults, and begin to watch."""
        self.cluster.connect(edges)
        self.planned = {edge.name: self.faults(edge.name) for edge in edges}
        watching = [self._call(host, watch, self.planned) for host in self.cluster._hosts.values()]
        ray.get(watching, timeout=DEADLINE_S)

    def poll(self, wait_s: float) -> list[Ended]:
        """Return the actors that ended, and keep what was seen in them."""
        ended = self.cluster.poll(wait_s)
        for one in ended:
            if one.facts is not None:
                self.seen[one.name] = ray.get(self._call(self.cluster._hosts[one.name], look), timeout=DEADLINE_S)
        return ended

    def staleness(self, producer: str, consumer: str) -> Counter[int]:
        """Return how many versions the producer had really finished since it made what the consumer began to use."""
        return staleness(self.seen[producer].finished, self.seen[consumer].started)

    def _call(self, host: Any, do: Callable[..., Any], *arguments: Any) -> ray.ObjectRef:
        return host.__ray_call__.options(concurrency_group="control").remote(do, *arguments)


def staleness(finished: Sequence[float], started: Sequence[tuple[float, int]]) -> Counter[int]:
    """Return the histogram of max(0, producer's version - 1 - message's version) at the moments of starting."""
    return Counter(max(0, bisect_right(finished, moment) - 1 - version) for moment, version in started)


def watch(host: Host, faults: Mapping[str, Sequence[Fault]]) -> None:
    """Spoil a host's incoming edges and time the uses of its block; runs in the host."""
    actor: Any = host.actor
    for edge, inbox in actor.inboxes.items():
        if faults[edge]:
            inbox.port = FaultyPort(inbox.port, faults[edge])
    actor.seen = Seen()
    if isinstance(actor, BlockActor):
        _time_uses(actor, actor.seen)


def _time_uses(actor: Any, seen: Seen) -> None:
    """Note a start before anybody is told of it, and a finish after it was allowed and before it counts."""
    count, finish = actor.count_staleness, actor.block.finish_use

    def counting(message: Message, edge: str) -> None:
        seen.started.append((time.monotonic(), message.version))
        count(message, edge)

    def finishing() -> None:
        seen.finished.append(time.monotonic())
        finish()

    actor.count_staleness, actor.block.finish_use = counting, finishing


def look(host: Host) -> Seen:
    """Return what has happened in a host; runs there."""
    actor: Any = host.actor
    ports = {edge: inbox.port for edge, inbox in actor.inboxes.items() if isinstance(inbox.port, FaultyPort)}
    actor.seen.fired = {edge: Counter(fault.action for fault in port.fired) for edge, port in ports.items()}
    actor.seen.overtaken = {edge: port.num_overtaken for edge, port in ports.items()}
    return actor.seen
