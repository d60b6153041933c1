"""The carriers under test behind one face: a producer to put, close and renew, and inboxes on it."""

import itertools
import time
from dataclasses import dataclass, replace

import ray
import torch

from actors.messages import Kind, Message
from actors.transport import direct
from actors.transport.faulty import FaultyPort
from actors.transport.in_process import InProcessPort
from actors.transport.inbox import Inbox
from actors.transport.outbox import Outbox, Take
from actors.transport.ray_pull import RayPort
from actors.transport.same_node import SameNodePort, TakeServer
from actors.transport.same_process import SameProcessPort

RUN = "conformance"
DEADLINE_S = 20.0
SLICE_S = 0.05

_edges = (f"edge{number}" for number in itertools.count())


class Outboxes:
    """A producer's process: outboxes by edge name. Plain; the Ray carrier makes it an actor."""

    def __init__(self):
        self.outboxes = {}
        self.version = 0

    def open(self, edge, capacity, incarnation):
        """Start a life of this edge's producer."""
        self.version = 0
        self.outboxes[edge] = Outbox(RUN, edge, capacity, incarnation=incarnation, version=lambda: self.version)

    def put(self, edge, message, wait_s):
        return self.outboxes[edge].put(message, wait_s)

    def take(self, take):
        return self.outboxes[take.edge].take(take)

    def take_referred(self, take):
        """Leave every tensor where it is, however small."""
        return self.outboxes[take.edge].take_referred(take, direct.put, above=0)

    def prepare(self):
        direct.prepare("cpu")

    def resize(self, edge, capacity):
        self.outboxes[edge].resize(capacity)

    def finish(self, edge):
        self.outboxes[edge].close()

    def facts(self, edge):
        outbox = self.outboxes[edge]
        with outbox._changed:  # takes of other threads change it
            kept = [sequence for sequence, _ in outbox._kept]
        return Facts(outbox.num_sent, outbox.num_waiting, kept, outbox.oldest_trainable)

    def set_version(self, version):
        self.version = version

    def drop(self, edge):
        self.outboxes.pop(edge).close()


@dataclass(frozen=True)
class Facts:
    """What a test may know of an outbox. `kept`: the sequence numbers that can still be asked for."""

    num_sent: int
    num_waiting: int
    kept: list[int]
    oldest_trainable: int


class InProcessCarrier:
    """Producers of this process."""

    def __init__(self):
        self._outboxes = Outboxes()
        self._made = []

    def producer(self, capacity=64, incarnation=0):
        """Start a producer on a fresh edge."""
        made = Producer(self, next(_edges))
        self._made.append(made.edge)
        made.renew(capacity, incarnation)
        return made

    def call(self, name, *args):
        return getattr(self._outboxes, name)(*args)

    def port(self, edge):
        return InProcessPort(self._outboxes.outboxes[edge])

    def close(self):
        """End every edge, so that no take stays outstanding."""
        for edge in self._made:
            self.call("drop", edge)


class SameProcessCarrier(InProcessCarrier):
    """Producers of this process, which other threads fill."""

    def port(self, edge):
        return SameProcessPort(self._outboxes.outboxes[edge])


class SocketCarrier(InProcessCarrier):
    """Producers behind a socket, as another process of this machine sees them."""

    def __init__(self):
        super().__init__()
        self._server = TakeServer(self._outboxes.take)

    def port(self, edge):
        return SameNodePort(self._server.address, otherwise=Nowhere())

    def close(self):
        super().close()
        self._server.close()


class Nowhere:
    """A line that must not be used."""

    def request(self, take):
        raise AssertionError(f"{take} went another way")

    collect = request


class RayCarrier(InProcessCarrier):
    """Producers of the warm Ray actor."""

    def __init__(self, actor):
        super().__init__()
        self._actor = actor

    def call(self, name, *args):
        return ray.get(getattr(self._actor, name).remote(*args), timeout=DEADLINE_S)

    def port(self, edge):
        return RayPort(self._actor)


class DirectCarrier(RayCarrier):
    """Producers of the warm Ray actor, whose tensors are fetched from its memory."""

    def port(self, edge):
        return direct.DirectPort(self._actor, "cpu")


class Producer:
    """One edge's producer, wherever it lives."""

    def __init__(self, carrier, edge):
        self.edge = edge
        self._carrier = carrier

    @property
    def facts(self):
        return self._carrier.call("facts", self.edge)

    def renew(self, capacity=64, incarnation=0):
        """Begin a new life with an empty outbox."""
        self._carrier.call("open", self.edge, capacity, incarnation)

    def put(self, message, wait_s=0.0):
        return self._carrier.call("put", self.edge, message, wait_s)

    def put_numbers(self, *numbers):
        for number in numbers:
            assert self.put(numbered(number))

    def resize(self, capacity):
        self._carrier.call("resize", self.edge, capacity)

    def set_version(self, version):
        self._carrier.call("set_version", version)

    def close(self):
        self._carrier.call("finish", self.edge)

    def port(self):
        return self._carrier.port(self.edge)

    def inbox(self, *, faults=(), received=-1, run=RUN, port=None, **settings):
        """Open a consumer's end. Its clock stands still until a test moves it, unless one is given."""
        port = FaultyPort(port or self.port(), faults)
        inbox = Inbox(run, self.edge, port, **{"clock": Clock()} | settings)
        inbox.received = received
        return inbox

    def take(self, **fields):
        """Make one raw call and return its reply or error."""
        take = Take(self.edge, (0, 0), received=-1, durable=-1, oldest_trainable=0, limit=64, wait_s=0.0)
        port = self.port()
        port.request(replace(take, **fields))
        return until(lambda: port.collect(SLICE_S))[0][1]


def stopped_clock():
    """Stand still also where `receive` finds nothing for a while: no gap ever lasts too long."""
    return 0.0


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Spoiler:
    """A wire that passes every packet through `spoil`, each time it is sent."""

    def __init__(self, port, spoil):
        self.port, self.spoil = port, spoil
        self.request = port.request

    def collect(self, wait_s):
        return [
            (take, reply)
            if isinstance(reply, Exception)
            else (take, replace(reply, packets=tuple(map(self.spoil, reply.packets))))
            for take, reply in self.port.collect(wait_s)
        ]


def numbered(number):
    """Return a message that can be told from every other one."""
    tensors = {"input": torch.arange(6.0).reshape(2, 3) + 100 * number, "labels": torch.tensor([number, 7])}
    return Message(Kind.ACTIVATION, batch_id=1000 + number, version=number, tensors=tensors)


def until(condition):
    """Return the first true value of `condition()`; fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "the deadline passed"
    return value


def receive(inbox, count=1):
    """Get `count` messages. Time passes on the inbox's clock whenever nothing came."""
    messages = []

    def step():
        message = inbox.get(SLICE_S)
        if message is not None:
            messages.append(message)
        elif isinstance(inbox.clock, Clock):
            inbox.clock.now += inbox.gap_s
        return len(messages) == count

    if count:
        until(step)
    return messages


def same(got, sent):
    """Whether two tensors agree in dtype, shape and every bit."""
    return got.dtype == sent.dtype and got.shape == sent.shape and bits(got) == bits(sent)


def bits(tensor):
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_are(messages, *numbers):
    """Assert that these are the messages `numbered(n)`, sent as sequence n, in this order, bit-equal."""
    assert [message.sequence for message in messages] == list(numbers)
    for message, number in zip(messages, numbers, strict=True):
        expected = numbered(number)
        assert (message.batch_id, message.version) == (expected.batch_id, expected.version)
        assert list(message.tensors) == list(expected.tensors)
        assert all(same(message.tensors[name], expected.tensors[name]) for name in expected.tensors)
