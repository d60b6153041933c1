"""Blocks of one node that take messages over sockets learn what they learn through the object store, bit for bit."""

import os
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
import ray
import torch

from actors.errors import EdgeError
from actors.messages import Kind, Message
from actors.transport.frames import send
from actors.transport.inbox import Inbox
from actors.transport.outbox import Outbox, Reply, Take
from actors.transport.same_node import SameNodePort, TakeServer
from tests.contract.carriers import SLICE_S, until
from tests.runs import Replacing, assert_balanced, block_weights, run

MLP = Replacing(name="mlp", widths=[12, 10, 8], blocks=4)
METHODS = {
    "local": {"network": MLP},
    "late backprop": {"rule": {"name": "backprop"}, "network": MLP, "schedule": {"delay_per_hop": 2}},
    "direct": {"rule": {"name": "direct_feedback_alignment"}, "network": MLP},
    "bound": {"network": MLP, "staleness": {"max": 1}},
}  # fmt: skip
WIDE = {
    "rule": {"name": "backprop"}, "network": Replacing(name="mlp", widths=[1100, 1100], blocks=3),
    "schedule": {"delay_per_hop": 1},
}  # fmt: skip
"""Messages of 69 KiB, which go through memory that the consumer lends."""
SOCKETS = {"placement": {"same_node": "socket"}}
KEEPING = {"checkpoint": {"every_batches": 4}, "evaluation": {"every_batches": 7}}
TAKE = Take("edge", (0, 0), received=-1, durable=-1, oldest_trainable=0, limit=4, wait_s=0.0)


def told(cluster, name):
    """Return a count of the server of every process of a kept cluster."""
    calls = {
        process: process.__ray_call__.options(concurrency_group="control").remote(
            lambda host: getattr(host._server, name) if host._server else 0
        )
        for process in cluster._spare
    }
    return dict(zip(calls, ray.get(list(calls.values()), timeout=60), strict=True))


def risen(cluster, name, before):
    """Return by how much a count has risen in all processes; those that were killed do not count."""
    return sum(count - before.get(process, 0) for process, count in told(cluster, name).items())


@pytest.mark.parametrize("method", METHODS)
def test_messages_over_sockets_change_no_weight(tmp_path, ray_cluster, method):
    here = run(tmp_path / "here", **METHODS[method])
    before = told(ray_cluster, "num_lines")
    got = run(tmp_path / "run", cluster=ray_cluster, **METHODS[method], **SOCKETS)
    assert risen(ray_cluster, "num_lines", before) == len(got.edges), "an edge went another way"
    assert block_weights(got) == block_weights(here) and got.test_accuracy == here.test_accuracy
    assert_balanced(got)


@pytest.mark.parametrize(("mode", "actor"), [("local", "block1"), ("local", "source"), ("global", "block2")])
def test_a_killed_process_changes_no_weight(tmp_path, ray_cluster, mode, actor):
    method = METHODS["late backprop"]
    kills = {"kill": [{"actor": actor, "at": "snapshot" if actor == "source" else "step", "batch": 11}]}
    got = run(
        tmp_path / "run", cluster=ray_cluster, **method, **SOCKETS, **KEEPING, faults=kills, recovery={"mode": mode}
    )
    here = run(tmp_path / "here", **method)
    assert [event["actor"] for event in got.events if event["event"] == "lost"] == [actor]
    assert block_weights(got) == block_weights(here) and got.test_accuracy == here.test_accuracy
    assert_balanced(got)


@pytest.mark.parametrize("killed", [None, "block0", "block1"])
def test_messages_in_lent_memory_change_no_weight(tmp_path, ray_cluster, killed):
    faults = {"kill": [{"actor": killed, "at": "step", "batch": 15}]} if killed else {}
    before = told(ray_cluster, "num_placed")
    got = run(tmp_path / "run", cluster=ray_cluster, **WIDE, **SOCKETS, **KEEPING, faults=faults)
    assert risen(ray_cluster, "num_placed", before) > 10
    here = run(tmp_path / "here", **WIDE)
    assert [event["actor"] for event in got.events if event["event"] == "lost"] == ([killed] if killed else [])
    assert block_weights(got) == block_weights(here) and got.test_accuracy == here.test_accuracy
    assert_balanced(got)


class Other:
    """A line that notes what it is asked."""

    def __init__(self):
        self.takes = []

    def request(self, take):
        self.takes.append(take)

    def collect(self, wait_s):
        return [(take, EdgeError("the other way")) for take in self.takes]


def test_an_address_that_can_t_be_reached_goes_the_other_way():
    other = Other()
    port = SameNodePort("nobody listens here", otherwise=other)
    port.request(TAKE)
    assert other.takes == [TAKE]
    assert [take for take, _ in port.collect(0.0)] == [TAKE]


def test_a_process_that_dies_ends_every_call():
    code = (
        "from actors.transport.outbox import Outbox; from actors.transport.same_node import TakeServer; import sys\n"
        "server = TakeServer(Outbox('run', 'edge', 4).take); print(server.address, flush=True); sys.stdin.read()"
    )
    producer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert producer.stdout is not None
        port = SameNodePort(producer.stdout.readline().strip(), otherwise=Other())
        waiting = Take("edge", (0, 0), received=-1, durable=-1, oldest_trainable=0, limit=4, wait_s=1.0)
        port.request(waiting)
        producer.kill()
        ended = until(lambda: port.collect(SLICE_S))
        assert [(take, type(error)) for take, error in ended] in (
            [(waiting, ConnectionError)],
            [(waiting, Reply)],  # the wait was over just before
        )
        port.request(TAKE)
        assert [type(error) for _, error in until(lambda: port.collect(SLICE_S))] == [ConnectionError]
    finally:
        producer.kill()
        producer.wait(60)


@pytest.mark.parametrize(
    "sent", [b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xc0", b"\x02\x00\x00\x00\x92\x01", b"\0" * 64]
)
def test_what_is_no_take_ends_its_line_and_no_other(sent):
    asked = []
    server = TakeServer(lambda take: asked.append(take) or Reply(take.session, (), 0, 5, None))
    stranger = socket.socket(socket.AF_UNIX)
    stranger.settimeout(20)
    stranger.connect(f"\0{server.address}")
    stranger.sendall(sent)
    with suppress(ConnectionResetError):  # where the rest of what was sent has not been read
        assert stranger.recv(1) == b"", "it is answered"
    port = SameNodePort(server.address, otherwise=Other())
    port.request(TAKE)
    ((_, reply),) = until(lambda: port.collect(SLICE_S))
    assert reply.version == 5 and asked and all(take == TAKE for take in asked)
    server.close()


def test_a_message_is_what_was_sent_however_long_it_is_kept():
    """The first ones come over the socket, the others in lent memory, some of it used again while others are held."""
    edge = Outbox("run", "edge", 4)
    server = TakeServer(edge.take)
    inbox = Inbox("run", "edge", SameNodePort(server.address, otherwise=Other()))
    held = []
    for value in range(60):
        assert edge.put(Message(Kind.ACTIVATION, value, tensors={"h": torch.full((40_000,), float(value))}), 20)
        held.append((value, until(lambda: inbox.get(SLICE_S)).tensors["h"]))
        if value % 5 == 4:
            del held[::2]
        assert all((tensor == expected).all() for expected, tensor in held)
    assert 30 < server.num_placed < 60
    server.close()


def test_descriptors_of_a_stranger_are_not_kept():
    server = TakeServer(lambda take: Reply(take.session, (), 0, 5, None))
    stranger = socket.socket(socket.AF_UNIX)
    stranger.settimeout(20)
    stranger.connect(f"\0{server.address}")
    pipe = os.pipe()
    before = os.readlink(f"/proc/self/fd/{pipe[0]}")
    send(stranger, ["no", "take"], descriptors=[os.dup(pipe[0])])
    assert stranger.recv(1) == b"", "it is answered"
    os.close(pipe[0])
    found = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert sum(before in target for target in found) == 1, "only the end that writes is left"
    os.close(pipe[1])
    server.close()
