"""Which processes go to a node that came, and which stay where they are."""

import pytest

from orchestrator.spreading import Need, Room, matches, returns

SOURCE, BLOCK = Need({"CPU": 0.01}, {}), Need({"CPU": 1.0}, {})
FIVE = [SOURCE, *[BLOCK] * 4]
"""The source and four blocks; two of these on each of two nodes, where the source is with the first."""
HOMES = {0: "a", 1: "a", 2: "a", 3: "b", 4: "b"}
CROWDED = dict.fromkeys(HOMES, "a")


def room(cpus, **more):
    return Room({"CPU": cpus, **more}, {"rack": "r"})


def test_neighbours_of_a_lost_node_go_to_a_new_one_together_once():
    found = returns(FIVE, HOMES, CROWDED, {"a", "c"}, {"c": room(4)})
    assert found == {3: "c", 4: "c"}
    assert returns(FIVE, HOMES | found, CROWDED | found, {"a", "c", "d"}, {"d": room(4)}) == {}


def test_those_of_a_node_that_is_lost_again_go_again():
    homes = HOMES | {3: "c", 4: "c"}
    assert returns(FIVE, homes, CROWDED, {"a", "d"}, {"d": room(4)}) == {3: "d", 4: "d"}


@pytest.mark.parametrize(
    ("rooms", "found"),
    [
        ({}, {}),
        ({"c": room(0.5)}, {}),
        ({"c": room(1)}, {3: "c"}),
        ({"c": room(1), "d": room(2)}, {3: "d", 4: "d"}),
        ({"c": room(1), "d": room(1)}, {3: "c"}),
    ],
    ids=["no node", "no room", "room for one", "the larger room", "two that take one each"],
)
def test_as_many_go_as_one_node_has_room_for(rooms, found):
    assert returns(FIVE, HOMES, CROWDED, {"a", *rooms}, rooms) == found


def test_room_is_room_for_all_that_is_asked_for_on_a_node_with_the_right_labels():
    needs = [SOURCE, BLOCK, BLOCK, Need({"CPU": 1.0, "GPU": 0.5}, {"rack": "in(q, r)"}), Need({"CPU": 1.0}, {"x": "y"})]
    assert returns(needs, HOMES, CROWDED, {"a", "c"}, {"c": room(4)}) == {}
    assert returns(needs, HOMES, CROWDED, {"a", "c"}, {"c": room(4, GPU=0.5)}) == {3: "c"}
    tenths = [SOURCE, BLOCK, BLOCK, Need({"CPU": 0.1}, {}), Need({"CPU": 0.2}, {})]
    assert returns(tenths, HOMES, CROWDED, {"a", "c"}, {"c": room(0.3)}) == {3: "c", 4: "c"}


def test_those_that_share_their_node_with_no_stranger_stay():
    taken_over = CROWDED | {3: "c", 4: "c"}
    assert returns(FIVE, HOMES, taken_over, {"a", "c", "d"}, {"d": room(4)}) == {}
    assert returns(FIVE, HOMES, HOMES, {"a", "b", "d"}, {"d": room(4)}) == {}


def test_of_two_lost_sets_on_one_node_one_goes_and_is_a_stranger_no_more():
    homes, now = {1: "a", 2: "b"}, {1: "c", 2: "c"}
    assert returns(FIVE, homes, now, {"c", "d", "e"}, {"d": room(4), "e": room(4)}) == {1: "d"}


def test_two_lost_sets_get_a_node_each_and_a_block_comes_before_the_source():
    homes, now = {0: "a", 1: "b", 2: "c"}, {0: "c", 1: "c", 2: "c"}
    assert returns(FIVE, homes, now, {"c", "d"}, {"d": room(4)}) == {1: "d"}
    assert returns(FIVE, homes, now, {"c", "d", "e"}, {"d": room(4), "e": room(4)}) == {1: "d", 0: "e"}
    assert returns(FIVE, {**homes, 0: "b"}, now, {"c", "d"}, {"d": room(4)}) == {0: "d", 1: "d"}


def test_a_process_that_is_not_heard_of_or_belongs_nowhere_stays():
    assert returns(FIVE, HOMES, {1: "a", 4: "a"}, {"a", "c"}, {"c": room(4)}) == {4: "c"}
    nowhere = {index: home for index, home in HOMES.items() if index != 3}
    assert returns(FIVE, nowhere, CROWDED, {"a", "c"}, {"c": room(4)}) == {4: "c"}


@pytest.mark.parametrize("wanted", ["b", "!a", "in(a, b)", "in(b,a)", "!in(a,c)"])
def test_a_node_s_label_is_as_a_selector_says(wanted):
    assert matches({"rack": "b", "disk": "fast"}, {"rack": wanted, "disk": "fast"})
    assert not matches({"rack": "b"}, {"rack": wanted, "disk": "fast"})


@pytest.mark.parametrize("wanted", ["a", "!b", "in(a, c)", "!in(a,b)"])
def test_a_node_s_label_is_not_as_a_selector_says(wanted):
    assert not matches({"rack": "b"}, {"rack": wanted})
    assert matches({}, {"rack": wanted}) is wanted.startswith("!"), "a label that is missing is nothing at all"
