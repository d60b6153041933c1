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


class Nodes:
    """Nodes by name, in the place of Ray's: what each has left, where the bundles of three blocks are, who ends."""

    def __init__(self):
        self.left, self.bundles, self.away, self.is_placed = (
            {"a": 0.0, "b": 0.0, "c": 0.0},
            ["a", "b", "c"],
            set(),
            True,
        )

    def nodes(self):
        return [{"NodeID": node, "Alive": True, "Labels": {}} for node in self.left]

    def table(self, group):
        state = "CREATED" if self.is_placed else "RESCHEDULING"
        return {"state": state, "bundles_to_node_id": dict(enumerate(self.bundles))}

    def lose(self, node, now_on):
        """A node is lost, and Ray finds its bundles a place on another."""
        del self.left[node]
        self.bundles = [now_on if each == node else each for each in self.bundles]


@pytest.fixture
def cluster():
    return Nodes()


@pytest.fixture
def places(cluster, monkeypatch):
    ray_places = pytest.importorskip("orchestrator.cluster.ray_places")
    for name, known in {
        "reserve": lambda *asked, **wait: object(), "is_placed": lambda group: cluster.is_placed,
        "placement_group_table": cluster.table, "avoided": lambda: cluster.away,
        "free_resources": lambda: {node: {"CPU": cpus} for node, cpus in cluster.left.items()},
        "PlacementGroupSchedulingStrategy": lambda group, placement_group_bundle_index: placement_group_bundle_index,
    }.items():  # fmt: skip
        monkeypatch.setattr(ray_places, name, known)
    monkeypatch.setattr(ray_places.ray, "nodes", cluster.nodes)
    places = ray_places.RayPlaces()
    places.reserve([Request((f"block{index}",), 1) for index in range(3)], "SPREAD", 1, is_own=False)
    return places


def astray(places, *now):
    return sorted(places.astray(dict(enumerate(now)), set(now)))


def again(places, index, away=()):
    return places.start_again(Recorder(), index, Request((f"block{index}",), 1), away)


def test_a_block_whose_bundle_crowds_another_goes_to_the_node_that_comes_and_stays(places, cluster):
    assert astray(places, "a", "b", "c") == []
    cluster.lose("c", now_on="b")
    assert astray(places, "a", "b", "b") == [] and not places.is_planned(2)
    cluster.left["d"] = 4.0
    assert astray(places, "a", "b", "b") == [2] and places.is_planned(2), "so that no spare is taken"
    process = again(places, 2)
    assert process["label_selector"] == {"ray.io/node-id": "d"} and process["num_cpus"] == 1
    assert places.is_outside(process) and not places.is_planned(2)
    assert astray(places, "a", "b", "d") == [], "it is where it belongs"
    assert again(places, 2)["label_selector"] == {"ray.io/node-id": "d"}, "a life that is lost begins there again"


def test_a_block_whose_new_node_is_lost_too_or_ends_begins_in_its_bundle_and_goes_to_the_next_that_comes(
    places, cluster
):
    cluster.lose("c", now_on="b")
    cluster.left["d"] = 4.0
    assert astray(places, "a", "b", "b") == [2]
    again(places, 2)
    assert again(places, 2, away={"d"})["scheduling_strategy"] == 2
    cluster.lose("d", now_on="")
    assert again(places, 2) == {"num_cpus": 0.0, "num_gpus": 0.0, "scheduling_strategy": 2}
    cluster.left["e"] = 4.0
    assert astray(places, "a", "b", "b") == [2]
    assert again(places, 2)["label_selector"] == {"ray.io/node-id": "e"}


def test_a_block_that_finds_no_room_on_the_node_that_came_goes_back_to_its_bundle_for_good(places, cluster):
    cluster.lose("c", now_on="b")
    cluster.left["d"] = 4.0
    assert astray(places, "a", "b", "b") == [2]
    again(places, 2)
    assert places.gives_way(2)
    assert again(places, 2)["scheduling_strategy"] == 2
    assert astray(places, "a", "b", "b") == []


def test_a_block_outside_of_its_bundle_goes_there_and_takes_no_spare_once_that_has_a_place(places, cluster):
    cluster.lose("c", now_on="")
    cluster.is_placed = False
    assert astray(places, "a", "b", "a") == [] and not places.gives_way(2)
    cluster.left["d"], cluster.bundles[2], cluster.is_placed = 0.0, "d", True
    assert places.gives_way(2)
    assert astray(places, "a", "b", "a") == [2] and places.is_planned(2)
    assert again(places, 2)["scheduling_strategy"] == 2
    assert astray(places, "a", "b", "d") == []


def test_nothing_goes_to_a_node_that_will_end_or_without_room_or_where_others_are(places, cluster):
    cluster.lose("c", now_on="b")
    cluster.left |= {"d": 4.0, "e": 0.5}
    cluster.away = {"d"}
    assert astray(places, "a", "b", "b") == []
    cluster.away, cluster.left["a"] = set(), 4.0
    assert astray(places, "a", "b", "b") == [2] and again(places, 2)["label_selector"] == {"ray.io/node-id": "d"}
