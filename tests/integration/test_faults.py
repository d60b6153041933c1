"""Wires, nodes and stores fail for real while a run trains: a fast slice of tests/benchmarks/faults.py.

The first part is exact: all actors share this process, and messages are spoiled in every life of every edge.
"""

import random

import pytest

from actors.transport.faulty import Fault, FaultyPort
from actors.transport.in_process import InProcessPort
from actors.transport.inbox import Inbox
from orchestrator.cluster import in_process
from orchestrator.cluster.in_process import InProcessCluster
from tests.benchmarks import fault_machines, fault_runs
from tests.benchmarks.fault_machines import ACTIONS
from tests.benchmarks.faults import perform
from tests.integration.test_recovery import KEEPING, METHODS, kill, lost, outcome, undisturbed
from tests.runs import config_of

LOOKS = 12
"""Of an actor at a turn: it asks again for what a wire has lost before anybody says that nothing moves."""


class SpoiledPort(FaultyPort):
    """A line on which one message in seven is dropped, corrupted, late, overtaken or doubled."""

    fired_of_all = 0

    def __init__(self, outbox):
        draw = random.Random(outbox.edge)
        faults = [Fault(sequence, draw.choice(ACTIONS)) for sequence in range(80) if draw.random() < 1 / 7]
        super().__init__(InProcessPort(outbox), faults)

    def collect(self, wait_s):
        before = len(self.fired)
        found = super().collect(wait_s)
        SpoiledPort.fired_of_all += len(self.fired) - before
        return found

    @property
    def is_cut(self):
        return self.port.is_cut

    @is_cut.setter
    def is_cut(self, value):
        self.port.is_cut = value


class PatientCluster(InProcessCluster):
    def _advance(self, name):
        moved = False
        for _ in range(LOOKS):
            moved = (name in self._running and super()._advance(name)) or moved
        return moved


@pytest.mark.parametrize(
    "kills",
    [
        [],
        [kill("block1", 11)],
        [kill("block1", 11), kill("block2", 9)],
        [kill("block0", 13), kill("source", 15, "snapshot")],
    ],
    ids=["no death", "a death", "two deaths", "source"],
)
@pytest.mark.parametrize("method", ["local", "pipelined", "synthetic", "direct", "lockstep"])
def test_spoiled_messages_together_with_deaths_change_no_weight(tmp_path_factory, monkeypatch, method, kills):
    reference = undisturbed(tmp_path_factory.getbasetemp(), method)
    monkeypatch.setattr(in_process, "InProcessPort", SpoiledPort)
    monkeypatch.setitem(Inbox.__init__.__kwdefaults__, "gap_s", 0.0)
    SpoiledPort.fired_of_all = 0
    config = config_of(
        tmp_path_factory.mktemp("run") / "run",
        **{**METHODS[method], **KEEPING, "recovery": {"mode": "local"}, "faults": {"kill": kills}},
    )
    got = fault_runs.train(config, progress=False, cluster=PatientCluster())
    assert SpoiledPort.fired_of_all > 10
    assert sorted(lost(got)) == sorted(one["actor"] for one in kills)
    assert outcome(got) == outcome(reference)
    assert not [event for event in got.events if event["event"] == "imbalance"]


# ---------------------------------------------------------------------- over Ray


@pytest.fixture
def shared(ray_cluster, monkeypatch):
    for module in (fault_runs, fault_machines):
        monkeypatch.setattr(module, "shared_cluster", lambda: ray_cluster)


@pytest.mark.timeout(300)
def test_messages_spoiled_over_ray_and_a_killed_block_change_no_weight(shared):
    line = perform("messages", 2)
    assert line["held"], line["why"]
    assert line["spoiled"] > 10 and line["lost"] == 1


@pytest.mark.hosts
@pytest.mark.timeout(300)
def test_a_node_of_three_that_is_removed_changes_no_weight():
    """It has a Ray of its own, in a process of its own."""
    line = perform("node", 0)
    assert line["held"], line["why"]
