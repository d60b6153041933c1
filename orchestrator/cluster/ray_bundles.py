"""Reserves a run's bundles, one per actor in chain order, and says what is missing for as long as it is."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from actors.errors import UserError
from orchestrator.cluster.contract import Request
from orchestrator.spreading import matches

SAY_FIRST_S, SAY_EVERY_S = 3.0, 30.0
A_LITTLE = 0.001
"""Of a node's resource `accelerator_type:KIND`, that Ray gives it 1 of; taken only to be placed there."""

PLACE_WAIT_S = 1.0
"""How long Ray may take to find the bundles of a lost node another place before a block goes anywhere."""
LOOK_EVERY_S = 0.02


def say_aloud(line: str) -> None:
    """Write a line on standard error, also where no progress is shown: nothing goes on until somebody acts."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def num_spares(requests: Sequence[Request], asked: int, say: Callable[[str], None] = say_aloud) -> int:
    """Return how many spare processes can be kept; says it if there are none where some were asked for."""
    if asked == 0 or all(request.is_anywhere for request in requests):
        return asked
    say(
        f"recovery.spares: got {asked}, and blocks that ask for GPUs, labels or resources, which no spare holds; none "
        f"is kept, and a lost block begins in a new process"
    )
    return 0


def bundle(request: Request) -> dict[str, float]:
    """Return what an actor takes of its node."""
    gpus = {"GPU": request.gpus} if request.gpus else {}
    kind = {f"accelerator_type:{request.accelerator_type}": A_LITTLE} if request.accelerator_type else {}
    return {"CPU": request.cpus, **gpus, **kind, **request.resources}


def reserve(
    requests: Sequence[Request],
    strategy: str,
    *,
    wait_s: float,
    is_own: bool = False,
    say: Callable[[str], None] = say_aloud,
) -> PlacementGroup:
    """Return a placement group of one bundle per request, once it has its places.

    On a Ray of this process's own nothing will ever be added, so what it lacks is refused at once; elsewhere nodes may
    come, and an autoscaler reads what is asked for.

    Args:
        requests: in chain order.
        strategy: of the placement group.
        wait_s: longest wait.
        is_own: whether this process has started the Ray.
        say: told every 30 s what is asked and what there is.

    Raises:
        UserError: the resources did not come in time.
    """
    if is_own and (lacking := _lacking(requests, strategy)):
        raise UserError(lacking)
    bundles = [bundle(request) for request in requests]
    labels = [dict(request.labels) for request in requests]
    selectors: dict[str, Any] = {"bundle_label_selector": labels} if any(labels) else {}
    group = placement_group(bundles, strategy=strategy, **selectors)
    ready, since, pause_s = group.ready(), time.monotonic(), SAY_FIRST_S
    while not ray.wait([ready], timeout=max(0.0, min(pause_s, since + wait_s - time.monotonic())))[0]:
        waited = time.monotonic() - since
        what = missing(requests, f"in {len(requests)} bundles ({strategy})")
        if waited >= wait_s:
            remove_placement_group(group)
            raise UserError(
                f"placement.wait_s: after {waited:.0f} s nothing was placed: {what}; add nodes, ask for less, or raise "
                f"placement.wait_s"
            )
        pause_s = SAY_EVERY_S
        say(f"waiting for resources since {waited:.0f} s: {what}")
    return group


def is_placed(group: PlacementGroup) -> bool:
    """Return whether every bundle has a node, waiting for those that have lost theirs."""
    until = time.monotonic() + PLACE_WAIT_S
    while placement_group_table(group)["state"] != "CREATED":
        if time.monotonic() >= until:
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def _lacking(requests: Sequence[Request], strategy: str) -> str | None:
    """Say what the whole cluster has too little of, if all actors were placed at the same time, and what to do."""
    if strategy == "STRICT_SPREAD" and len(_nodes()) < len(requests):
        return (
            f"placement.strategy: got STRICT_SPREAD, a node for each of {len(requests)} actors, and the cluster has "
            f"{len(_nodes())}; choose PACK or add nodes"
        )
    asked, has = _total(requests), ray.cluster_resources()
    keys = {"GPU": "placement.gpus_per_block", "CPU": "placement.cpus_per_block"}
    for resource in sorted(asked, key=lambda name: name != "GPU"):
        if asked[resource] > has.get(resource, 0.0) + 1e-6:
            key = keys.get(resource, "placement.resources")
            return (
                f"{key}: {len(requests)} actors ask for {asked[resource]:g} {resource}, the cluster has "
                f"{has.get(resource, 0.0):g}; lower it or add nodes"
            )
    labels = [request.labels for request in requests if request.labels]
    unmatched = next(
        (wanted for wanted in labels if not any(matches(_labels(node), wanted) for node in _nodes())), None
    )
    if unmatched is None:
        return None
    return f"placement.labels: no node of the cluster has {dict(unmatched)}; change it or add nodes"


def _total(requests: Sequence[Request]) -> Counter[str]:
    total: Counter[str] = Counter()
    for request in requests:
        total.update(bundle(request))  # type: ignore[arg-type] - amounts are fractions
    return total


def missing(requests: Sequence[Request], how: str) -> str:
    """Say what is asked for, and `how`, and what the cluster has."""
    labels = sorted({str(dict(request.labels)) for request in requests if request.labels})
    on = f", on nodes labelled {' or '.join(labels)}" if labels else ""
    return f"asked are {_amounts(_total(requests))} {how}{on}; {_there([request.labels for request in requests])}"


def _there(labels: Sequence[Mapping[str, str]]) -> str:
    nodes = _nodes()
    has, free = ray.cluster_resources(), ray.available_resources()
    known = sorted({f"{key}={value}" for node in nodes for key, value in _labels(node).items()}) if any(labels) else []
    on = f" labelled {', '.join(known) or 'with nothing'}" if any(labels) else ""
    return f"the cluster has {_amounts(has)} on {len(nodes)} nodes{on}, of which {_amounts(free)} are free"


def _nodes() -> list[Any]:
    return [node for node in ray.nodes() if node["Alive"]]


def _labels(node: Any) -> dict[str, str]:
    """A node's labels, without the one that is its own."""
    return {key: value for key, value in node.get("Labels", {}).items() if key != "ray.io/node-id"}


def _amounts(resources: Mapping[str, float]) -> str:
    hidden = ("node:", "memory", "object_store_memory")
    plain = {name: amount for name, amount in resources.items() if "_group_" not in name}  # not those of bundles
    shown = {name: amount for name, amount in sorted(plain.items()) if not name.startswith(hidden)}
    return " + ".join(f"{round(amount, 3):g} {name}" for name, amount in shown.items()) or "nothing"
