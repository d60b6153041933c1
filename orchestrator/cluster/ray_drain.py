"""Ray nodes that are drained: which they are, and how a host gets a place beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ray._private.state import state
from ray.util.placement_group import PlacementGroup, placement_group_table

from orchestrator.cluster.contract import Request


def draining() -> dict[str, float]:
    """Return the nodes that will end, and the seconds that each has left; as Ray Train looks for them."""
    now = time.time()
    return {node: max(0.0, at_ms / 1000 - now) for node, at_ms in state.get_draining_nodes().items()}


def bundle_leaves(group: PlacementGroup, index: int) -> bool:
    """Return whether a bundle is on a node that will end: Ray moves it only after that."""
    leaving = draining()
    return bool(leaving) and placement_group_table(group)["bundles_to_node_id"].get(index) in leaving


def bundle_nodes(group: PlacementGroup, bundles: Mapping[str, int]) -> dict[str, str]:
    """Return the node of every actor's bundle, given their indices.

    Nothing is returned while a bundle has no node, and none that will end.
    """
    table = placement_group_table(group)
    if table["state"] != "CREATED":
        return {}
    leaving = draining()
    found = {name: table["bundles_to_node_id"].get(index) for name, index in bundles.items()}
    return {name: node for name, node in found.items() if node is not None and node not in leaving}


def elsewhere(host: Any, request: Request) -> Any:
    """Start a host outside of its bundle, where what its actor needs is free; Ray leaves drained nodes out."""
    kind = {"accelerator_type": request.accelerator_type} if request.accelerator_type else {}
    away = {"ray.io/node-id": f"!in({','.join(draining())})"}
    return host.options(
        num_cpus=0, num_gpus=request.gpus, resources=dict(request.resources),
        label_selector={**request.labels, **away}, **kind,
    ).remote()  # fmt: skip
