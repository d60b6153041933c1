"""When the actors of a node that will end are moved: after a snapshot, and in time."""

import pytest

from actors.errors import RunError
from orchestrator.departures import Departures
from orchestrator.failures import Failure, Failures


class Run:
    """A clock, a newest checkpoint, and what was ordered of others."""

    def __init__(self, mode="local"):
        self.now, self.position, self.mode = 100.0, 40, mode
        self.losses, self.moved, self.snapshots, self.events = {}, [], 0, []
        self.departures = Departures(self, self, self.snapshot, self.event, lambda line: None, lambda: self.now)

    def move(self, name, reason, is_announced=True):
        self.moved.append(name)
        self.losses[name] = reason

    def snapshot(self):
        self.snapshots += 1

    def event(self, **facts):
        self.events.append(facts)

    def look(self, leaving, **nodes):
        done = {"done": False}
        self.departures.look(leaving, {name: {"node": node, **done} for name, node in nodes.items()})

    def settle(self, *astray, done=()):
        reports = {name: {"node": node, "done": name in done} for name, node in HERE.items()}
        self.departures.settle(reports, lambda nodes: [name for name in astray if name in nodes])


HERE = {"block0": "a", "block1": "b", "block2": "b"}


def test_actors_of_a_node_that_will_end_wait_for_a_snapshot_and_are_moved_once():
    run = Run()
    run.look({}, **HERE)
    assert not run.events
    for _ in range(3):
        run.look({"b": 30.0}, **HERE)
    assert run.snapshots == 1 and run.moved == [] and run.events[0]["actors"] == ["block1", "block2"]
    run.position = 52
    for _ in range(2):
        run.look({"b": 25.0}, **HERE)
    assert run.moved == ["block1", "block2"] and len(run.events) == 1


def test_a_snapshot_is_ordered_for_a_node_that_holds_no_actor_since_it_may_hold_the_orchestrator():
    run = Run()
    for _ in range(2):
        run.look({"c": 30.0}, **HERE)
    assert run.snapshots == 1 and run.moved == [] and run.events[0]["actors"] == []
    run.position = 50
    run.look({"c": 20.0}, **HERE)
    assert run.snapshots == 1 and run.moved == []


def test_without_a_snapshot_they_are_moved_while_there_is_time():
    run = Run()
    run.look({"b": 30.0}, **HERE)
    run.now += 19.9
    run.look({"b": 10.1}, **HERE)
    assert run.moved == []
    run.now += 0.2
    run.look({"b": 9.9}, **HERE)
    assert run.moved == ["block1", "block2"]


def test_nothing_is_moved_where_nothing_is_replaced_or_what_has_ended():
    run = Run("none")
    run.look({"b": 0.0}, **HERE)
    assert run.moved == [] and run.events
    run = Run()
    run.departures.look({"b": 0.0}, {"block1": {"node": "b", "done": True}})
    assert run.moved == [] and run.snapshots == 0


def test_a_death_on_a_node_that_had_announced_it_is_told_from_others():
    run = Run()
    run.look({"b": 30.0}, **HERE)
    assert run.departures.is_announced("block1") and not run.departures.is_announced("block0")
    run.look({"b": 30.0}, block1="a")
    assert not run.departures.is_announced("block1"), "it has moved"


def test_preemptions_and_failures_have_budgets_of_their_own():
    failures = Failures(max_failures=1, max_preemptions=2)
    assert failures.add(Failure("block0", "moved", announced=True)) is None
    assert failures.add(Failure("block0", "moved", announced=True)) is None
    assert failures.add(Failure("block0", "died")) is None
    assert "more than recovery.max_preemptions = 2" in str(failures.add(Failure("block0", "moved", announced=True)))
    assert "more than recovery.max_failures = 1" in str(failures.add(Failure("block0", "died")))
    many = Failures(max_failures=0)
    assert all(many.add(Failure("block0", "moved", announced=True)) is None for _ in range(100))


def test_too_many_moves_end_the_run():
    run = Run()

    def refuse(name, reason):
        raise RunError(reason)

    run.move = refuse
    run.look({"b": 30.0}, **HERE)
    run.position = 50
    with pytest.raises(RunError, match="its node b ends in 30 s"):
        run.look({"b": 30.0}, **HERE)


def test_actors_move_back_after_a_snapshot_and_not_while_another_is_replaced():
    run = Run()
    run.settle("block1")
    run.settle("block1")
    assert run.snapshots == 1 and run.moved == []
    run.position = 50
    run.losses["block0"] = "died"
    run.settle("block1")
    assert run.moved == []
    run.losses.clear()
    run.settle("block1")
    run.position = 60
    run.settle("block1")
    assert run.moved == ["block1"] and run.snapshots == 2
    run.losses.clear()
    run.settle()
    assert run.moved == ["block1"] and run.snapshots == 2


def test_what_has_ended_is_not_moved_back_at_the_end_of_a_run():
    run = Run()
    run.settle("block1", "block2")
    run.position = 60
    run.settle("block1", "block2", done=["block1"])
    assert run.moved == ["block2"]
    run = Run()
    run.settle("block1", done=["block1"])
    assert run.snapshots == 0
