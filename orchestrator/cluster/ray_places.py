"""Where the processes of a run belong: each in a bundle of one placement group, or on a node that came later.

Ray moves a bundle only when its node is lost, and never back. So a process that goes to a node that came takes its
resources there anew, while its bundle stays reserved where it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.cluster.contract import Request
from orchestrator.cluster.ray_bundles import bundle, is_placed, reserve
from orchestrator.cluster.ray_drain import avoided, elsewhere, free_resources, on_node
from orchestrator.spreading import Need, Room, returns


class RayPlaces:
    """Knows where each process belongs, by its index in the chain, and starts processes there."""

    def __init__(self) -> None:
        self._group: PlacementGroup | None = None
        self._requests: Sequence[Request] = ()
        self._homes: dict[int, str] = {}
        """The node where a process was placed first, or to which it was moved since; missing: that of its bundle."""
        self._apart: set[int] = set()
        """Those whose homes are not where their bundles are."""
        self._planned: dict[int, str] = {}
        """Where the next processes of some that are well would go."""
        self._outside: list[Any] = []
        """Processes that were asked for outside of their bundles."""

    def reserve(self, requests: Sequence[Request], strategy: str, wait_s: float, *, is_own: bool) -> None:
        """Reserve one bundle per process.

        Raises:
            UserError: the cluster does not place them in time.
        """
        self._group, self._requests = reserve(requests, strategy, wait_s=wait_s, is_own=is_own), requests
        self._homes = self._bundles()

    def start(self, host: Any, index: int, request: Request, cpus: float) -> Any:
        """Start a process in its bundle; anywhere, if the bundle was on a lost node and has no other place."""
        if self._group is None or (request.is_anywhere and not is_placed(self._group)):
            return elsewhere(host, request)
        placed = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        return host.options(num_cpus=cpus, num_gpus=request.gpus, scheduling_strategy=placed).remote()

    def start_again(self, host: Any, index: int, request: Request, away: Collection[str]) -> Any:
        """Start another process where one belongs; its bundle may still count the CPUs of the one before.

        Args:
            host: Ray's class of it.
            index: which.
            request: what it asks for.
            away: nodes to avoid.
        """
        if (node := self._planned.pop(index, None)) is not None:
            self._move_home(index, node)
        if index in self._apart and self._homes[index] in _alive() - {*away}:
            process = on_node(host, request, self._homes[index])
        elif away and not self._has_place(index, away):
            process = elsewhere(host, request, away)
        else:
            return self.start(host, index, request, 0.0)
        self._outside.append(process)
        return process

    def _move_home(self, index: int, node: str) -> None:
        self._homes[index] = node
        self._apart.discard(index)
        if self._bundles().get(index) != node:
            self._apart.add(index)

    def _bundles(self) -> dict[int, str]:
        """Return the node of every bundle; of none while one has no node."""
        if self._group is None:
            return {}
        table = placement_group_table(self._group)
        return dict(table["bundles_to_node_id"]) if table["state"] == "CREATED" else {}

    def _has_place(self, index: int, away: Collection[str]) -> bool:
        """Whether a bundle is on a node that is not to be avoided; Ray moves it only after a node's end."""
        if self._group is None:
            return False
        return placement_group_table(self._group)["bundles_to_node_id"].get(index) not in away

    def is_planned(self, index: int) -> bool:
        """Return whether the next process of one that is well would go to a certain node."""
        return index in self._planned

    def is_outside(self, process: Any) -> bool:
        """Return whether a process was asked for outside of its bundle."""
        return process in self._outside

    def forget(self, process: Any) -> None:
        """Forget a process that is no more."""
        if process in self._outside:
            self._outside.remove(process)

    def gives_way(self, index: int) -> bool:
        """Return whether a process that finds no room outside of its bundle is to be asked for again.

        One that does not fit on the node to which it was to move belongs in its bundle from now on.
        """
        if index in self._apart:
            self._apart.remove(index)
            del self._homes[index]
            return True
        return self._bundles().get(index, "") not in {"", *avoided()}

    def astray(self, now: Mapping[int, str], held: Collection[str]) -> Collection[int]:
        """Return the processes that have a place to go to: their own, or since that was lost, one on a node that came.

        Args:
            now: the nodes where they are, those that may be moved.
            held: the nodes where any process of the run is.
        """
        self._planned, bundles = {}, self._bundles()
        if not bundles:
            return ()
        alive = _alive()
        usable = alive - avoided()
        places = {index: home if (home := self._homes.get(index)) in usable else bundles[index] for index in bundles}
        self._planned = {
            index: place for index, place in places.items() if place in usable and now.get(index, place) != place
        }
        if not alive.issuperset(self._homes.values()):
            taken = {*held, *self._planned.values()}
            needs = [Need(bundle(request), request.labels) for request in self._requests]
            self._planned |= returns(needs, self._homes, {**now, **self._planned}, alive, _rooms(usable - taken))
        return self._planned

    def close(self) -> None:
        """Free the bundles."""
        if self._group is not None:
            remove_placement_group(self._group)


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _rooms(nodes: Collection[str]) -> dict[str, Room]:
    """Return what these nodes have left; not those without a CPU, as a head may be."""
    free, labels = free_resources(), {node["NodeID"]: node.get("Labels", {}) for node in ray.nodes()}
    return {node: Room(free[node], labels[node]) for node in sorted(nodes) if free.get(node, {}).get("CPU")}
