"""Actors as Ray actors: one process per placement-group bundle, for one of them or several neighbours, in chain order.

The driver owns every process; none is detached and none is restarted by Ray. The reference that a host's
`run` returns ends with the actor, so it tells of its death.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# Read by Ray's daemons when they start: workers at normal priority, no usage reports, no warnings.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

import ray
from ray import exceptions

from actors.errors import UserError
from orchestrator.cluster.contract import Assignment, Ended, Joined, Request
from orchestrator.cluster.probe import marked, refusal
from orchestrator.cluster.ray_bundles import num_spares
from orchestrator.cluster.ray_calls import Told, error_of, failed, result_of
from orchestrator.cluster.ray_drain import avoided, draining, elsewhere
from orchestrator.cluster.ray_gauges import RayGauges
from orchestrator.cluster.ray_host import remote_host
from orchestrator.cluster.ray_joining import Joining
from orchestrator.cluster.ray_places import RayPlaces
from orchestrator.cluster.ray_seat import Line, Seat
from orchestrator.cluster.ray_session import init_ray, is_own_ray
from orchestrator.measures import Measure
from orchestrator.wiring import Edge

REPORT_WAIT_S = 0.3
"""Longest wait for the reports of the moment; those that come later are read the next time."""
STOP_DEADLINE_S = 10.0
SPARE_TAKES = 2
KEPT_TAKES, KEPT_SEATS = 16, 4
"""Takes that a kept host can serve at a time, and actors that it can hold; it is started before these are known."""


class RayCluster:
    """A run's actors on a Ray cluster.

    Args:
        strategy: placement strategy of the group.
        object_store_bytes: size of a local cluster's object store; None lets Ray choose.
        wait_s: longest wait for resources.
        deadline_s: longest wait for a process to build its actors, which may read shards and download data.
        keep: keep hosts between runs (tests); they end with the Ray session.
        is_direct: start processes that can keep tensors for others to fetch.
    """

    def __init__(
        self, *, strategy: str = "PACK", object_store_bytes: int | None = None, wait_s: float = 600.0,
        deadline_s: float = 600.0, keep: bool = False, is_direct: bool = False,
    ) -> None:  # fmt: skip
        self._strategy, self._wait_s, self._deadline_s, self._keep = strategy, wait_s, deadline_s, keep
        self._is_direct = is_direct
        self._gauges = RayGauges()
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            init_ray(object_store_bytes)
        self._is_own = is_own_ray()
        self._places = RayPlaces()
        self._seats: dict[str, Seat] = {}
        self._lives: dict[str, int] = {}
        self._spare: list[Any] = []
        self._dead: list[Any] = []
        self._runs: dict[Any, str] = {}
        self._num_spares = 0
        self._joining = Joining(wait_s, deadline_s)
        """The actors of a process are built by one call."""
        self._asked: dict[str, Any] = {}
        self._told = Told()
        self._requests: dict[str, tuple[int, Request]] = {}
        self._edges: list[Edge] = []

    @property
    def _hosts(self) -> dict[str, Any]:
        """The process of every actor."""
        return {name: seat.process for name, seat in self._seats.items()}

    def cpus_for(self, num_blocks: int, reserved: float) -> float:
        """Return one CPU per block, or an equal share of what the cluster has, if any node with CPUs has come yet."""
        has = ray.cluster_resources().get("CPU", num_blocks + 1.0)
        return min(1.0, math.floor((has - reserved) / num_blocks * 1000) / 1000)

    def store_bytes(self) -> int | None:
        """Return the size of the smallest node's object store."""
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return min((int(has["object_store_memory"]) for has in alive if "object_store_memory" in has), default=None)

    def start(self, requests: Sequence[Request], spares: int = 0) -> None:
        """Reserve one bundle per process and start it there; spares wait outside of the bundles.

        Raises:
            UserError: the cluster does not place them in time.
        """
        self._requests = {name: (index, request) for index, request in enumerate(requests) for name in request.names}
        fits = all(request.is_anywhere and len(request.names) <= KEPT_SEATS for request in requests)
        self._num_spares = num_spares(requests, spares)
        if self._keep and fits:
            self._have_spares(len(requests) + spares)
            for process, request in zip(self._spare, requests, strict=False):
                self._sit(request, process)
            return
        self._places.reserve(requests, self._strategy, self._wait_s, is_own=self._is_own)
        for index, request in enumerate(requests):
            self._sit(request, self._places.start(self._process_for(request), index, request, request.cpus))
        self._have_spares(self._num_spares)

    def _sit(self, request: Request, process: Any) -> None:
        self._seats |= {name: Seat(process, index) for index, name in enumerate(request.names)}

    def _process_for(self, request: Request) -> Any:
        return remote_host(request.num_takes + SPARE_TAKES, self._num_seats([request]), is_direct=self._is_direct)

    def _num_seats(self, requests: Iterable[Request]) -> int:
        """Return how many actors a process for any of these can hold; one that is kept may hold more another time."""
        return max(KEPT_SEATS if self._keep else 1, *(len(request.names) for request in requests))

    def _have_spares(self, count: int) -> None:
        while len(self._spare) < count:
            seats = self._num_seats(request for _, request in self._requests.values())
            host = remote_host(KEPT_TAKES, seats, is_direct=self._is_direct)
            self._spare.append(elsewhere(host, Request((), 0)))

    def check(self, run_dir: Path) -> None:
        """Ask every host, and every spare, what it sees.

        Raises:
            UserError: a host does not see the run directory, or has other versions.
            RunError: a host died or took too long.
        """
        with marked(run_dir) as (mark, text):
            firsts = {names[0]: self._seats[names[0]].process for names in self._processes(self._seats)}
            waiting = [process for process in self._spare if process not in firsts.values()]
            firsts |= {f"spare {index}": process for index, process in enumerate(waiting[: self._num_spares])}
            calls = {name: lambda process=process: process.probe.remote(mark, text) for name, process in firsts.items()}
            refs = {name: call() for name, call in calls.items()}
            for name, ref in refs.items():
                seen = result_of(name, ref, calls[name], self._deadline_s)
                if why := refusal(name, seen["node"], seen, run_dir):
                    raise UserError(why)

    def _processes(self, names: Iterable[str]) -> list[tuple[str, ...]]:
        """Return the names of the actors of every process that one of these is in."""
        return list(dict.fromkeys(self._requests[name][1].names for name in names))

    def assign(self, assignments: Mapping[str, Assignment]) -> dict[str, dict[str, Any]]:
        """Build all actors, those of different processes at the same time.

        Raises:
            UserError: an actor refused its settings.
            RunError: an actor died or took too long.
        """
        processes = self._processes(assignments)
        refs = {names: self._build(names, assignments) for names in processes}
        found: dict[str, dict[str, Any]] = {}
        for names, ref in refs.items():
            reports = result_of(names[0], ref, lambda names=names: self._build(names, assignments), self._deadline_s)
            found |= self._found(names, reports)
        return found

    def _found(self, names: Sequence[str], reports: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        found = dict(zip(names, reports, strict=True))
        self._seats |= {name: self._seats[name].found(report) for name, report in found.items()}
        return found

    def _build(self, names: Sequence[str], assignments: Mapping[str, Assignment]) -> Any:
        """Build the actors of a process."""
        built = [assignments[name] for name in names]
        self._lives |= {name: one.spec.life.incarnation for name, one in zip(names, built, strict=True)}
        return self._seats[names[0]].process.assign.remote([(one.spec, one.shape) for one in built])

    def connect(self, edges: Sequence[Edge]) -> None:
        """Give every consumer a line to its producer."""
        self._edges = list(edges)
        calls = [lambda edge=edge: self._seats[edge.consumer].connect({edge.name: self._line(edge)}) for edge in edges]
        refs = [call() for call in calls]
        for edge, ref, call in zip(edges, refs, calls, strict=True):
            result_of(edge.consumer, ref, call, self._deadline_s)

    def _line(self, edge: Edge) -> Line:
        return self._seats[edge.consumer].line_to(self._seats[edge.producer])

    def launch(self) -> None:
        """Start every actor's program."""
        self._runs = {self._run(name): name for name in self._seats}

    def _run(self, name: str) -> Any:
        return self._seats[name].run(self._lives[name])

    def poll(self, wait_s: float) -> list[Ended | Joined]:
        """Return the actors that ended or joined again, waiting up to `wait_s` for the first."""
        self._told.again()
        self._return_to_bundles()
        found: list[Ended | Joined] = [*self._joining.late()]
        pending = [*self._runs, *self._joining.refs]
        if not pending:
            return found
        ready, _ = ray.wait(pending, num_returns=1, timeout=0.0 if found else wait_s)
        for ref in ready:
            if ref in self._runs:
                name = self._runs.pop(ref)
                ended = self._ended(name, ref)
                if ended.facts == {}:
                    continue  # it was only watched, and has been told to stop
                if ended.facts is not None:
                    self._watch(name)
                found.append(ended)
            else:
                found += self._joined(self._joining.pop(ref), ref)
        return found

    def _return_to_bundles(self) -> None:
        """Ask again for the processes that find no place outside of their bundles, if there is another one by now."""
        for build in self._joining.stranded():
            if self._places.gives_way(self._requests[build.request.names[0]][0]):
                self.replace(build.assignments)

    def _watch(self, name: str) -> None:
        """An actor that has ended is still asked by its consumers: its process must live on."""
        self._runs[self._seats[name].watch()] = name

    # ------------------------------------------------------------------ replacing

    def replace(self, assignments: Mapping[str, Assignment], well: Collection[str] = ()) -> None:
        """Begin to put other lives of actors in the places of these."""
        self._runs = {ref: name for ref, name in self._runs.items() if name not in assignments}
        self._joining.drop(assignments)
        for names in self._processes(assignments):
            before = self._seats[names[0]].process
            index, request = self._requests[names[0]]
            if set(names) <= set(well):
                before.stop.options(concurrency_group="control").remote()
            else:
                ray.kill(before)
                self._sit(request, self._fresh_host(index, request, before))
            process, built = self._seats[names[0]].process, {name: assignments[name] for name in names}
            is_outside = self._places.is_outside(process)
            self._joining.add(self._build(names, built), process, request, built, is_outside=is_outside)
            for name in names:
                self._asked.pop(name, None)

    def _fresh_host(self, index: int, request: Request, before: Any) -> Any:
        """Return a spare process if there is one, else a new one.

        Where spares are is not known, so none serves while nodes end, or where the process has a place to go to.
        """
        for known in (self._spare, self._dead):
            if before in known:
                known.remove(before)
        self._places.forget(before)
        used = list(self._hosts.values())
        away = set() if self._is_own else avoided()
        spares = [] if away or self._places.is_planned(index) else list(self._spare)
        free = next((host for host in spares if host not in used and self._is_alive(host)), None)
        if free is None:
            free = self._places.start_again(self._process_for(request), index, request, away)
            if self._keep:
                self._spare.append(free)
        elif not self._keep:
            self._spare.remove(free)
        return free

    def _is_alive(self, spare: Any) -> bool:
        """Whether a spare process has not died, with its node perhaps; one that has is forgotten."""
        answer = spare.__ray_ready__.options(concurrency_group="control").remote()
        ready, _ = ray.wait([answer], timeout=REPORT_WAIT_S)
        if ready and error_of(answer) is not None:
            self._spare.remove(spare)
            return False
        return True  # it may still be starting: no worse than a new one

    def _joined(self, names: tuple[str, ...], ref: Any) -> list[Ended | Joined]:
        """Join the actors of a process, which have been built, with those of their neighbours that are there."""
        error = error_of(ref)
        if error is not None:
            return [self._failed(names[0], error)]
        self._found(names, ray.get(ref))
        absent = self._joining.names
        for name in names:
            incoming = [edge for edge in self._edges if edge.consumer == name]
            lines = {edge.name: None if edge.producer in absent else self._line(edge) for edge in incoming}
            self._seats[name].connect(lines)  # it comes before the run
        for edge in self._edges:
            if edge.producer in names and edge.consumer not in absent and edge.consumer not in names:
                consumer, line = self._seats[edge.consumer], {edge.name: self._line(edge)}
                self._told.tell(lambda consumer=consumer, line=line: consumer.connect(line, at_once=True))
        self._runs |= {self._run(name): name for name in names}
        if not self._keep and not self._joining:
            self._have_spares(self._num_spares)  # a process that starts now is in nobody's way
        return [Joined(name) for name in names]

    # ------------------------------------------------------------------ reports and orders

    def reports(self) -> dict[str, dict[str, Any]]:
        """Return the reports that have come since the last call."""
        absent = self._joining.names
        for name, seat in self._seats.items():
            if name not in self._asked and name not in absent:
                self._asked[name] = seat.report()
        refs = {ref: name for name, ref in self._asked.items()}
        ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=REPORT_WAIT_S)
        found: dict[str, dict[str, Any]] = {}
        for ref in ready:
            del self._asked[refs[ref]]
            try:
                found[refs[ref]] = ray.get(ref)
            except exceptions.RayError:
                continue  # its run() reference tells why
        return found

    def leaving(self) -> Mapping[str, float]:
        """Return the nodes that are drained, with the seconds they have left; a Ray of our own drains none."""
        return {} if self._is_own else draining()

    def astray(self, nodes: Mapping[str, str]) -> Sequence[str]:
        """Return the actors that have a place to go to: their own, or since that was lost, one on a node that came."""
        now = {self._requests[name][0]: node for name, node in nodes.items()}
        found = self._places.astray(now, {seat.node for seat in self._seats.values()})
        return [name for name in nodes if self._requests[name][0] in found]

    def publish(self, measures: Sequence[Measure]) -> None:
        """Let this node's agent serve them."""
        self._gauges.publish(measures)

    @property
    def has_news(self) -> bool:
        """Reports are read once a second."""
        return False

    def order(self, name: str, order: str, values: Mapping[str, Any] | None = None) -> None:
        """Send an order to one actor."""
        seat = self._seats[name]
        self._told.tell(lambda: seat.order(order, values or {}))

    def close(self) -> None:
        """Kill the actors, free the bundles, and end Ray if this cluster started it."""
        if self._keep:
            self._recycle()
        else:
            for host in (*self._hosts.values(), *self._spare):
                ray.kill(host)
            self._spare = []
        self._places.close()
        self._seats, self._places, self._runs, self._asked, self._told = {}, RayPlaces(), {}, {}, Told()
        self._joining = Joining(self._wait_s, self._deadline_s)
        if self._started_ray and not self._keep:
            ray.shutdown()

    def _recycle(self) -> None:
        """Stop what still runs; a host that does not stop in time is replaced next time."""
        for host in self._hosts.values():
            host.stop.options(concurrency_group="control").remote()
        stuck = list(self._runs)
        if stuck:
            ready, stuck = ray.wait(stuck, num_returns=len(stuck), timeout=STOP_DEADLINE_S)
            for ref in ready:
                self._ended(self._runs[ref], ref)
        for host in [*self._dead, *(self._hosts[self._runs[ref]] for ref in stuck)]:
            ray.kill(host)
            if host in self._spare:
                self._spare.remove(host)
        self._dead = []

    def _ended(self, name: str, ref: Any) -> Ended:
        error = error_of(ref)
        return Ended(name, facts=ray.get(ref)) if error is None else self._failed(name, error)

    def _failed(self, name: str, error: exceptions.RayError) -> Ended:
        ended, seat = failed(name, error), self._seats[name]
        if ended.died and isinstance(error, exceptions.RayActorError):
            self._dead.append(seat.process)
        is_here = seat.node == ray.get_runtime_context().get_node_id()
        return ended if is_here else replace(ended, node=seat.node)
