"""How long a task has waited for each of its edges."""

import pytest

from actors.messages import Kind, Message
from actors.operations import Pace, Receive, Send
from actors.task import Task
from actors.times import Times
from actors.transport.in_process import InProcessPort
from actors.transport.inbox import Inbox
from actors.transport.outbox import Outbox
from actors.waits import Waits


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_wait_counts_for_every_edge_that_could_end_it_and_while_it_still_goes_on():
    clock = Clock()
    waits = Waits(clock)
    assert waits.seconds("a") == 0.0
    with waits.on("a", "b"):
        clock.now = 2.0
        assert (waits.seconds("a"), waits.seconds("b"), waits.seconds("c")) == (2.0, 2.0, 0.0)
    clock.now = 5.0
    with waits.on("a"):
        clock.now = 6.0
    assert (waits.seconds("a"), waits.seconds("b")) == (3.0, 2.0)


def test_a_wait_that_fails_is_over():
    clock = Clock()
    waits = Waits(clock)
    with pytest.raises(ValueError, match="broken"), waits.on("a"):
        clock.now = 1.0
        raise ValueError("broken")
    clock.now = 9.0
    assert waits.seconds("a") == 1.0


class Slow:
    """Lets every call with a deadline last until it."""

    def __init__(self, clock, call):
        self.clock, self.call = clock, call

    def __call__(self, *args):
        found = self.call(*args)
        if not found:
            self.clock.now += args[-1]
        return found


def task_of(program, inbox, outbox, clock):
    outbox.put, outbox.wait_trainable = Slow(clock, outbox.put), Slow(clock, outbox.wait_trainable)
    port = inbox.port
    port.collect = Slow(clock, port.collect)
    return Task(program, {"in": inbox}, {"out": outbox}, Times(), bound_of=lambda edge: 0, clock=clock)


def batch(index):
    return Message(Kind.ORDERS, index, 0)


def test_only_an_empty_edge_and_a_full_one_are_waited_for_and_pacing_is_no_want_of_room(monkeypatch):
    clock, source, outbox = Clock(), Outbox("run", "in", 4), Outbox("run", "out", 1)
    inbox = Inbox("run", "in", InProcessPort(source), clock=clock)
    monkeypatch.setattr("actors.transport.inbox.time.monotonic", clock)

    def program():
        yield Receive("in")
        yield Send("out", batch(0))
        yield Pace("out", 5)
        yield Send("out", batch(1))

    task = task_of(program(), inbox, outbox, clock)
    assert task.advance(1.0)
    for _ in range(3):
        assert not task.advance(1.0)
    assert task.waits.seconds("in") == pytest.approx(3.0) and task.waits.seconds("out") == 0.0
    source.put(batch(0))
    assert task.advance(1.0), "there is a message: taking it is no wait"
    assert task.advance(1.0), "there is room: sending is no wait"
    assert not task.advance(1.0), "the bound holds it"
    assert task.waits.seconds("in") == pytest.approx(3.0) and task.waits.seconds("out") == 0.0
    outbox.oldest_trainable = 9
    assert task.advance(1.0)
    for _ in range(2):
        assert not task.advance(1.0), "the edge is full"
    assert task.waits.seconds("out") == pytest.approx(2.0)
