"""Where a process goes that has no bundle, and how long a node is taken to have that will end."""

import threading
import time

import pytest

from orchestrator.cluster.contract import Request

HEAD, ONE, TWO = "a" * 8, "b" * 8, "c" * 8


class Recorder:
    """In the place of Ray's class of processes: returns what it was asked for."""

    def options(self, **asked):
        self.asked = asked
        return self

    def remote(self):
        return self.asked


@pytest.fixture
def drain(monkeypatch):
    """The module, on a cluster of a head without CPUs and two nodes, of which one has no CPU left to give."""
    ray_drain = pytest.importorskip("orchestrator.cluster.ray_drain")
    has = {HEAD: {"node:1": 1.0}, ONE: {"CPU": 4.0}, TWO: {"CPU": 0.001}}
    nodes = [{"NodeID": node, "Alive": True, "Resources": resources} for node, resources in has.items()]
    nodes.append({"NodeID": "d" * 8, "Alive": False, "Resources": {}})
    monkeypatch.setattr(ray_drain.ray, "nodes", lambda: nodes)
    return ray_drain


@pytest.mark.parametrize(("away", "avoided"), [((), [HEAD]), ([TWO], [HEAD, TWO]), ([ONE, TWO], [ONE, TWO])])
def test_a_process_without_a_bundle_stays_off_a_head_without_cpus_while_other_nodes_are_left(drain, away, avoided):
    asked = drain.elsewhere(Recorder(), Request(("block0",), 1, labels={"rack": "b"}), away)
    assert asked["label_selector"] == {"rack": "b", "ray.io/node-id": f"!in({','.join(avoided)})"}
    assert asked["num_cpus"] == 0 and asked["memory"] > 0, "an actor that needs nothing goes anywhere"


def test_where_every_node_has_cpus_none_is_avoided(drain, monkeypatch):
    node = {"NodeID": ONE, "Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(drain.ray, "nodes", lambda: [node])
    assert drain.elsewhere(Recorder(), Request(("block0",), 1))["label_selector"] == {}


def test_a_node_that_will_end_and_does_not_say_when_has_time_for_a_snapshot(drain, monkeypatch):
    soon, past = (time.time() + 30) * 1000, (time.time() - 5) * 1000
    monkeypatch.setattr(ray_state().state, "get_draining_nodes", lambda: {HEAD: 0, ONE: soon, TWO: past})
    left = drain.draining()
    assert left[HEAD] == 60.0 and 25 < left[ONE] <= 30 and left[TWO] == 0.0


def ray_state():
    return pytest.importorskip("ray._private.state")


def test_a_ray_that_does_not_tell_which_nodes_will_end_drains_none(drain, monkeypatch):
    monkeypatch.delattr(ray_state(), "state")
    assert drain.draining() == {}


def test_nodes_that_may_be_switched_off_are_asked_at_the_same_time(drain, monkeypatch):
    together = threading.Barrier(3, timeout=30)

    def answers(node):
        together.wait()
        return node["NodeID"] != TWO

    monkeypatch.setattr(drain, "draining", dict)
    monkeypatch.setattr(drain, "_answers", answers)
    assert drain.avoided() == {TWO}
