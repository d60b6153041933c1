"""Ray nodes that will end, or have: which they are, and how a host gets a place beside them."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from orchestrator.cluster.contract import Request

ANSWER_S = 1.0
MOST_AT_ONCE = 32
NO_DEADLINE_S = 60.0
"""What a node is taken to have left that will end, and does not say when; `ray drain-node` says so only if asked to."""
SOME_BYTES = 1024**2
"""Ray asks a random node to place an actor that needs nothing, which may be the one that has just ended; else the
driver's own."""


def draining() -> dict[str, float]:
    """Return the nodes that will end, and the seconds that each has left; as Ray Train looks for them.

    A Ray that does not tell of them drains none.
    """
    state, now = _state(), time.time()
    ending = {} if state is None else state.get_draining_nodes()
    left_s = {node: at_ms / 1000 - now if at_ms else NO_DEADLINE_S for node, at_ms in ending.items()}
    return {node: max(0.0, each) for node, each in left_s.items()}


def avoided() -> set[str]:
    """Return the nodes where nothing new should start: those that will end, and those that have, unnoticed so far.

    Ray holds a node that is switched off for alive until it has missed its health checks; meanwhile a connection to
    its raylet is refused, or does not come about. None is returned if that would leave no node.
    """
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    found = {node for node in draining() if node in alive}
    asked = [name for name in alive if name not in found]
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        answers = list(pool.map(_answers, [alive[name] for name in asked]))
    found |= {name for name, answered in zip(asked, answers, strict=True) if not answered}
    return found if found < alive.keys() else set()


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def free_resources() -> dict[str, dict[str, float]]:
    """Return what every living node has left, by resource; a Ray that does not tell of it has nothing left."""
    state = _state()
    return {} if state is None else state.available_resources_per_node()


def _state() -> Any:
    """Return what Ray knows of its nodes, which has no public name; None in a Ray where it is not there."""
    try:
        from ray._private.state import state
    except ImportError:
        return None
    return state


def elsewhere(host: Any, request: Request, away: Collection[str] = ()) -> Any:
    """Start a host outside of its bundle, where what its actor needs is free, on none of the nodes to avoid."""
    avoid = {*away, *_without_cpus(away)}
    return _outside(host, request, 0, {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"} if avoid else {})


def on_node(host: Any, request: Request, node: str) -> Any:
    """Start a host outside of its bundle, on this node, of which it takes all that its actor asks for."""
    return _outside(host, request, request.cpus, {"ray.io/node-id": node})


def _outside(host: Any, request: Request, cpus: float, node: Mapping[str, str]) -> Any:
    kind = {"accelerator_type": request.accelerator_type} if request.accelerator_type else {}
    return host.options(
        memory=SOME_BYTES, num_cpus=cpus, num_gpus=request.gpus, resources=dict(request.resources),
        label_selector={**request.labels, **node}, **kind,
    ).remote()  # fmt: skip


def _without_cpus(away: Collection[str]) -> set[str]:
    """Return the nodes that have no CPU for anybody, as a head may have, unless no others are left."""
    left = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]}
    left = {node: cpus for node, cpus in left.items() if node not in away}
    bare = {node for node, cpus in left.items() if cpus == 0}
    return bare if bare < left.keys() else set()
