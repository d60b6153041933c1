"""How a chain works on given devices: its own programs, driven by discrete events, fed with measured costs.

With one device of as many cores as this machine has, that predicts a run here; with one device per block, a cluster's.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import cast

import simpy

from actors.datasets.batches import TrainBatches
from actors.edge_ends import edge_capacities
from actors.edges import EdgeSettings
from actors.messages import Message
from actors.needs import Needs, Place
from actors.program import BlockProgram
from actors.seeds import seed_of
from actors.source_program import SourceProgram
from actors.spec import PluginSpec
from actors.times import Times
from actors.trace import Span, Trace, sampled_batches
from orchestrator.chain_profile import NOTHING, Carriage, ChainProfile, Work
from orchestrator.event_model import NoBatches, one_thread, period
from orchestrator.simulated_chain import Pieces, SimulatedActor, SimulatedEdge, live_all
from orchestrator.simulated_device import Device, Link
from orchestrator.timed_block import Costs, TimedBlock, timed_spec
from orchestrator.wiring import SOURCE, Wiring, block_name

FREE = Costs(forward=0.0, backward=0.0)


@dataclass(frozen=True)
class Chain:
    """What is simulated: the wiring of a run and what its blocks need, and how its edges are sized."""

    wiring: Wiring
    needs: Sequence[Needs]
    rule: PluginSpec
    objective: PluginSpec
    settings: EdgeSettings = field(default_factory=EdgeSettings)
    late: str = "stash"
    accumulate: int = 1
    bound: int | None = None


@dataclass(frozen=True)
class Machines:
    """Where it is simulated.

    `speeds`: of each device, relative to the one that the costs were measured on.
    `device_of`: the device of each block; the source has one of its own unless `cores` is given.
    `cores`: of one device that hosts all actors and carries their messages; None: each device serves its own blocks.
    `slowdown`: how many times longer computing lasts there while another core computes, too.
    `link`: between devices. `jitter`: relative spread of the length of a piece of work, lognormal; its mean stays.
    """

    speeds: Sequence[float] = (1.0,)
    device_of: Sequence[int] = ()
    cores: int | None = None
    slowdown: float = 1.0
    link: Link = field(default_factory=Link)
    jitter: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Simulated:
    """What came of it; seconds.

    `period_s`: time per batch of the last block in the steady state.
    `starts`: when each block started on each batch.
    `shares`: where each block's time goes. `busy`: part of its time in which each device works.
    `staleness`: of what a block trains on, by edge: mean and largest.
    `batches_in_flight`: that have left the source when the last block ends one, this one included; mean, steady state.
    `spans`: what each actor did when, in some batches.
    """

    period_s: float
    starts: Sequence[Sequence[float]]
    shares: Sequence[Mapping[str, float]]
    busy: Sequence[float]
    staleness: Mapping[str, Mapping[str, float]]
    batches_in_flight: float
    spans: Mapping[str, Sequence[Span]]
    total_s: float


class Simulation:
    """One simulation: build it, then `run` it.

    Args:
        chain: what is simulated.
        profile: what it costs; or the costs of each block's passes, as the event model takes them.
        machines: where.
        num_batches: to simulate.
    """

    def __init__(
        self, chain: Chain, profile: ChainProfile | Sequence[Costs], machines: Machines, num_batches: int
    ) -> None:
        self.env = simpy.Environment()
        self.chain, self.machines, self.num_batches = chain, machines, num_batches
        self.profile = profile if isinstance(profile, ChainProfile) else None
        self.costs = [FREE] * len(chain.needs) if isinstance(profile, ChainProfile) else list(profile)
        self.num_blocks = len(chain.needs)
        self._devices()
        self.actors = [self._source(), *(self._block(index) for index in range(self.num_blocks))]
        self.by_name = {actor.name: actor for actor in self.actors}
        self.edges = self._edges()
        self.versions = [0] * self.num_blocks
        self.staleness: dict[str, list[int]] = defaultdict(list)
        self.in_flight: list[int] = []

    def run(self) -> Simulated:
        """Return what came of it.

        Raises:
            RunError: the chain can't progress with these buffers.
        """
        with one_thread():
            live_all(self.env, self.actors, self.edges)
        blocks = self.actors[1:]
        starts = [[begin for _, begin, _ in actor.forwards] for actor in blocks]
        totals = [sum(actor.spent.values()) or 1.0 for actor in blocks]
        return Simulated(
            period_s=period(starts[-1]),
            starts=starts,
            shares=[
                {share: seconds / total for share, seconds in actor.spent.items()}
                for actor, total in zip(blocks, totals, strict=True)
            ],
            busy=[device.busy_s / self.env.now if self.env.now else 0.0 for device in self.devices],
            staleness={
                edge: {"mean": mean(seen), "max": max(seen)} for edge, seen in self.staleness.items() if seen
            },
            batches_in_flight=mean(self.in_flight[len(self.in_flight) // 2 :]),
            spans={actor.name: actor.trace.spans for actor in self.actors},
            total_s=self.env.now,
        )  # fmt: skip

    # ------------------------------------------------------------------ building

    def _devices(self) -> None:
        machines = self.machines
        if machines.cores is not None:
            threads = self.num_blocks + 1 + len(self.chain.wiring.edges)
            shared = Device(self.env, cores=machines.cores, num_threads=threads, slowdown=machines.slowdown)
            self.devices, self.homes, self.source_home = [shared], [shared] * self.num_blocks, shared
            return
        hosted = [list(machines.device_of).count(index) for index in range(len(machines.speeds))]
        self.devices = [
            Device(self.env, cores=1, speed=speed, num_threads=count)
            for speed, count in zip(machines.speeds, hosted, strict=True)
        ]
        self.homes = [self.devices[index] for index in machines.device_of]
        self.source_home = Device(self.env, num_threads=1)

    def _source(self) -> SimulatedActor:
        load = NOTHING if self.profile is None else self.profile.load
        pieces = Pieces(lambda kind: load)
        actor = SimulatedActor(SOURCE, self.source_home, pieces, self._trace())
        batches = cast(TrainBatches, NoBatches(self.num_batches))
        actor.program = SourceProgram(
            batches, {}, self.chain.wiring.source, cast(Times, pieces), evaluate_every=None, stop_asked=lambda: False
        ).run()
        return actor

    def _block(self, index: int) -> SimulatedActor:
        chain = self.chain
        works = None if self.profile is None else self.profile.blocks[index].works
        pieces = Pieces() if works is None else Pieces(lambda kind: self._cost(works.get(kind, NOTHING)))
        name = block_name(index)
        actor = SimulatedActor(name, self.homes[index], pieces, self._trace(), self._stretch(name))
        actor.bound = chain.bound
        edges = chain.wiring.blocks[index]
        spec = timed_spec(
            Place(index, self.num_blocks), edges, chain.needs[index], chain.rule, chain.objective, late=chain.late
        )
        block = TimedBlock(replace(spec, accumulate=chain.accumulate), self.costs[index], pieces.spend)
        newest: list[Message] = []

        def trained(message: Message, edge: str) -> None:
            if edge == edges.driver:
                newest[:] = [message]
            else:
                self._note_staleness(index, message, edge)
            self.edges[edge].promise(message.version + 1)

        counted = "learn" if chain.bound is None or edges.up is None else "pace"

        def begun() -> None:
            self._note_staleness(index, newest[0], edges.driver)

        def worked(kind: str) -> None:
            if kind == counted:  # the program counts a finished use right after it
                self._note_use(index, newest[0].batch_id)

        actor.begun, actor.worked = begun, worked
        actor.program = BlockProgram(
            block, edges, cast(Times, pieces),
            snapshot=lambda position, orders: None, report=lambda evaluation: None, trained=trained,
            is_paced=lambda: chain.bound is not None,
        ).run()  # fmt: skip
        return actor

    def _cost(self, work: Work) -> Work:
        """A core does the core's part of a piece of work only; a block that has a device holds it all the time."""
        return work if self.machines.cores is not None else Work(work.wall_s, work.wall_s)

    def _edges(self) -> dict[str, SimulatedEdge]:
        wiring = self.chain.wiring
        room = {name: held for edges in (wiring.source, *wiring.blocks) for name, held in edges.room.items()}
        sizes = edge_capacities([edge.name for edge in wiring.edges], self.chain.settings, room)
        known = {} if self.profile is None else self.profile.edges
        carrier = self.devices[0] if self.machines.cores is not None else None
        homes = {SOURCE: self.source_home} | {block_name(i): home for i, home in enumerate(self.homes)}
        edges = {}
        for edge in wiring.edges:
            is_local = self.machines.cores is None and homes[edge.producer] is homes[edge.consumer]
            carriage = known.get(edge.name, Carriage())
            link = Link() if is_local else self.machines.link
            edges[edge.name] = SimulatedEdge(self.env, sizes[edge.name], carriage, link, carrier)
        return edges

    def _trace(self) -> Trace:
        return Trace(sampled_batches(self.num_batches), shortest_s=0.0)

    def _stretch(self, name: str) -> Callable[[Work], Work]:
        jitter = self.machines.jitter
        draw = random.Random(seed_of(self.machines.seed, "jitter", name)).lognormvariate

        def longer(work: Work) -> Work:
            factor = draw(-(jitter**2) / 2, jitter)
            return Work(work.wall_s * factor, work.cpu_s * factor)

        return longer if jitter else lambda work: work

    def _note_staleness(self, index: int, message: Message, edge: str) -> None:
        """A block starts to train on a message, which is so many versions old."""
        if index > 0 and edge == f"{block_name(index - 1)}->{block_name(index)}":
            self.staleness[edge].append(max(0, self.versions[index - 1] - 1 - message.version))

    def _note_use(self, index: int, batch_id: int) -> None:
        """A block has finished a use; at the last one, those batches are in flight that have left the source."""
        self.versions[index] = batch_id + 1
        num_sent = self.edges[self.chain.wiring.source.up[0]].num_sent
        if index == self.num_blocks - 1 and (num_sent < self.num_batches or not self.in_flight):  # not while it drains
            self.in_flight.append(num_sent - batch_id)
