"""Drives the blocks' own programs in a simulation of discrete events (simpy): on devices, over links, on a clock.

The programs are the ones that a run drives, as in the event model; here actors may share a device, and edges a link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import simpy

from actors.errors import RunError
from actors.messages import Message
from actors.operations import Pace, Receive, Send
from actors.program import Program
from actors.trace import Trace
from orchestrator.chain_profile import Carriage, Work
from orchestrator.simulated_device import Device, Happening, Link

Piece = tuple[str, str, int, Work]
"""(share, kind of work, batch id, what it costs)."""


class Pieces:
    """Stands in for `Times`: notes the work that a program asks for between two operations.

    Args:
        cost: what a kind of work costs; None: what has been spent meanwhile.
    """

    def __init__(self, cost: Callable[[str], Work] | None = None) -> None:
        self.noted: list[Piece] = []
        self.batch = -1
        self._cost, self._spent = cost, 0.0

    def at(self, step: int, batch_id: int | None = None) -> None:
        """Say which batch is worked on."""
        self.batch = step if batch_id is None else batch_id

    def spend(self, seconds: float) -> None:
        """Count seconds that a pass or an update takes."""
        self._spent += seconds

    @contextmanager
    def within(self, share: str, work: str = "") -> Iterator[None]:
        """Note the body of a `with` as one piece."""
        self._spent = 0.0
        yield
        cost = Work(self._spent, self._spent) if self._cost is None else self._cost(work)
        self.noted.append((share, work, self.batch, cost))


class SimulatedEdge:
    """An edge with its bounded outbox and the link below it.

    Args:
        env: the simulation.
        capacity: messages that may be sent and not yet taken.
        carriage: what a message costs.
        link: between the two devices; messages of an edge share its bytes per second.
        device: pays for the carrying, if anyone does.
    """

    def __init__(
        self, env: simpy.Environment, capacity: int, carriage: Carriage, link: Link, device: Device | None
    ) -> None:
        self.carriage = carriage
        self.num_sent = 0
        self.oldest_trainable = 0
        self._env, self._link, self._device = env, link, device
        self._room = simpy.Container(env, capacity, init=capacity)
        self._line = simpy.Resource(env)
        self._arrived = simpy.Store(env)
        self._promised: list[tuple[int, simpy.Event]] = []

    def send(self, message: Message) -> Happening:
        """Wait for room, then let the message travel."""
        yield self._room.get(1)
        self.num_sent += 1
        carry, busy_s = self.carriage.carry, self._link.seconds(self.carriage.num_bytes)
        if self._device is None and busy_s == 0.0:
            self._arrive_in(self._link.latency_s + carry.wall_s, message)
        else:
            self._env.process(self._travel(message, carry, busy_s))

    def _travel(self, message: Message, carry: Work, busy_s: float) -> Happening:
        with self._line.request() as turn:
            yield turn
            if self._device is not None:
                yield from self._device.work(carry)
            yield self._env.timeout(busy_s)
        self._arrive_in(self._link.latency_s, message)

    def _arrive_in(self, seconds: float, message: Message) -> None:
        arrival = self._env.timeout(seconds)
        arrival.callbacks.append(lambda _: self._arrived.put(message))  # type: ignore[union-attr]

    def receive(self) -> Happening:
        """Return the next message once it has arrived."""
        message = yield self._arrived.get()
        self._room.put(1)
        return message

    def promise(self, version: int) -> None:
        """The consumer starts training on nothing below `version` any more."""
        self.oldest_trainable = max(self.oldest_trainable, version)
        kept = [event.succeed() for needed, event in self._promised if needed <= self.oldest_trainable]
        if kept:
            self._promised = [(needed, event) for needed, event in self._promised if needed > self.oldest_trainable]

    def pace(self, version: int) -> Happening:
        """Wait until the consumer has promised `version`."""
        if self.oldest_trainable < version:
            event = self._env.event()
            self._promised.append((version, event))
            yield event


class SimulatedActor:
    """A program on a device.

    Args:
        name: of the actor.
        device: where it runs.
        pieces: what its program notes its work in.
        trace: keeps spans of some batches.
        stretch: changes what a piece costs, for jitter.
    """

    program: Program

    def __init__(
        self, name: str, device: Device, pieces: Pieces, trace: Trace, stretch: Callable[[Work], Work] = lambda w: w
    ) -> None:
        self.name, self.device, self.pieces, self.trace, self.stretch = name, device, pieces, trace, stretch
        self.bound: int | None = None
        self.spent: dict[str, float] = {}
        self.forwards: list[tuple[int, float, float]] = []
        """(batch id, begin, end) of every forward pass in training."""
        self.begun: Callable[[], None] = lambda: None
        """Called when a forward pass begins."""
        self.worked: Callable[[str], None] = lambda kind: None
        """Called when a piece of work has ended, `pace` included."""
        self.waiting_on: str | None = None

    def live(self, env: simpy.Environment, edges: Mapping[str, SimulatedEdge]) -> Happening:
        """Run the program to its end."""
        message: Message | None = None
        while True:
            try:
                operation = self.program.send(message)  # type: ignore[arg-type]
            except StopIteration:
                yield from self._work_off(env)
                return
            yield from self._work_off(env)
            self.trace.at(self.pieces.batch, self.pieces.batch)
            message, begin, self.waiting_on = None, env.now, operation.edge
            if isinstance(operation, Receive):
                edge = edges[operation.edge]
                message = yield from edge.receive()
                self._spend(operation.share, "", begin, env.now)
                yield from self._handle(env, edge.carriage.receive)
            elif isinstance(operation, Send):
                yield from self._handle(env, edges[operation.edge].carriage.send)
                begin = env.now
                yield from edges[operation.edge].send(operation.message)
                self._spend("wait_output", "", begin, env.now)
            elif isinstance(operation, Pace) and self.bound is not None:
                yield from edges[operation.edge].pace(operation.version - self.bound)
                self._spend("wait_output", "", begin, env.now)
                self.worked("pace")
            self.waiting_on = None

    def _work_off(self, env: simpy.Environment) -> Happening:
        """Take the time of all that the program has asked for since its last operation."""
        noted, self.pieces.noted = self.pieces.noted, []
        for share, kind, batch_id, cost in noted:
            self.trace.at(batch_id, batch_id)
            begin = env.now
            if kind == "forward":
                self.begun()
            yield from self.device.work(self.stretch(cost))
            if kind == "forward":
                self.forwards.append((batch_id, begin, env.now))
            self._spend(share, kind, begin, env.now)
            self.worked(kind)

    def _handle(self, env: simpy.Environment, cost: Work) -> Happening:
        if cost.wall_s > 0.0:
            begin = env.now
            yield from self.device.work(cost)
            self._spend("transfer", "", begin, env.now)

    def _spend(self, share: str, kind: str, begin: float, end: float) -> None:
        self.spent[share] = self.spent.get(share, 0.0) + end - begin
        self.trace.add(share, kind, begin, end)


def live_all(env: simpy.Environment, actors: list[SimulatedActor], edges: Mapping[str, SimulatedEdge]) -> None:
    """Run every program to its end.

    Raises:
        RunError: nothing can advance.
    """
    processes = [env.process(actor.live(env, edges)) for actor in actors]
    env.run()
    if not all(process.triggered for process in processes):
        waits = ", ".join(f"{a.name} on {a.waiting_on}" for a, p in zip(actors, processes, strict=True) if p.is_alive)
        raise RunError(f"nothing can advance: {waits}")
