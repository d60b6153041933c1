"""Threads that serve yield to the one that computes."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from actors.priority import YIELDING, yield_to_computing
from actors.transport.in_process import InProcessPort
from actors.transport.outbox import Outbox, Reply, Take
from actors.transport.same_node import SameNodePort, TakeServer
from orchestrator.cluster import ray_host

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness per thread")


def niceness(thread):
    return os.getpriority(os.PRIO_PROCESS, thread)


class Waiting(threading.Thread):
    """A thread that does one thing and then waits."""

    def __init__(self, first=lambda: None):
        super().__init__(daemon=True)
        self.first, self.ready, self.over = first, threading.Event(), threading.Event()
        self.start()
        assert self.ready.wait(20)

    def run(self):
        self.first()
        self.ready.set()
        self.over.wait(60)


def test_a_thread_yields_alone():
    mine = niceness(threading.get_native_id())
    other, yielding = Waiting(), Waiting(yield_to_computing)
    assert niceness(yielding.native_id) == mine + YIELDING
    assert niceness(other.native_id) == niceness(threading.get_native_id()) == mine
    for thread in (other, yielding):
        thread.over.set()


ALONE = """
import threading
from types import SimpleNamespace
from actors.priority import YIELDING, let_others_yield
from tests.unit.test_priority import Waiting, niceness
mine, before = niceness(threading.get_native_id()), Waiting()
let_others_yield()
print(niceness(before.native_id) - mine, niceness(threading.get_native_id()) - mine)
"""


def test_all_threads_that_are_there_yield_to_the_one_that_computes():
    """In a process of its own: nothing makes a thread less nice again."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(YIELDING), "0"], done.stderr


def test_who_serves_takes_over_a_socket_yields():
    seen = []

    def answer(take):
        seen.append(niceness(threading.get_native_id()))
        return Reply(take.session, (), 0, 0, None)

    server = TakeServer(answer)
    port = SameNodePort(server.address, InProcessPort(Outbox("r", "e", 1)))
    try:
        port.request(Take("e", (0, 0), -1, -1, 0, 0, 0.0))
        assert port.collect(20.0)
        assert seen == [niceness(threading.get_native_id()) + YIELDING]
    finally:
        server.close()


@pytest.mark.parametrize(("num_actors", "threads", "yields"), [(1, 1, True), (1, 2, False), (2, 1, False)])
def test_others_yield_once_and_only_where_a_single_thread_computes(monkeypatch, num_actors, threads, yields):
    calls = []
    monkeypatch.setattr(ray_host, "let_others_yield", lambda: calls.append(1))
    host, actor = ray_host.RayHost(), SimpleNamespace(machine=SimpleNamespace(threads=threads))
    host._hosts = [SimpleNamespace(actor=actor)] * num_actors
    host._have_others_yield()
    host._have_others_yield()
    assert len(calls) == yields
