"""500 batches of the soak (`tests/benchmarks/soak.py`): slow-downs and a bad wire, watched by a referee."""

from dataclasses import replace

import pytest

from actors.transport.faulty import Fault
from orchestrator.api import train
from orchestrator.config import resolved
from tests.benchmarks.arms import perform
from tests.benchmarks.soak import Soak
from tests.benchmarks.soak_checks import wrong
from tests.benchmarks.soak_plan import BOUND, arms
from tests.benchmarks.watched_cluster import WatchedCluster, staleness
from tests.runs import run

BATCHES = 500


def spoiled(schedule):
    return next(arm for arm in arms(BATCHES) if arm.facts == {"schedule": schedule, "wire": "spoiled"})


@pytest.fixture(scope="module")
def soaked(ray_cluster):
    """Runs an arm over Ray; its line."""

    def soak(arm):
        one = Soak(ray_cluster)
        line = perform(arm, one.watch(arm), one.measure)
        assert line["status"] == "completed", line["reason"]
        return line

    return soak


def assert_spoiled_and_well(line):
    assert line["wrong"] == []
    assert all(set(fired) == {"delay", "duplicate", "reorder"} for fired in line["fired"].values())
    assert line["overtaken"] > 0
    assert max(int(value) for edge in line["referee"].values() for value in edge) == BOUND, "it was reached"


def test_a_pipeline_keeps_bound_ledger_and_weights_on_a_wire_that_delays_doubles_and_reorders(soaked, tmp_path):
    arm = spoiled("pipeline")
    line = soaked(arm)
    assert_spoiled_and_well(line)
    plain = {**resolved(arm.config), "run_dir": str(tmp_path / "run"), "faults": {}}
    alone = train({**plain, "placement": {"backend": "in_process"}}, progress=False)
    assert line["weights_sha256"] == alone.weights_sha256


def test_replay_keeps_bound_and_ledger_on_a_wire_that_delays_doubles_and_reorders(soaked):
    assert_spoiled_and_well(soaked(spoiled("replay")))


def test_whatever_does_not_hold_is_said(tmp_path, ray_cluster):
    """The control of the tests above: a run without pacing, then facts that were tampered with."""
    watched = WatchedCluster(ray_cluster)
    slow = {"slow": [{"block": 1, "factor": 5}]}
    summary = run(tmp_path / "run", cluster=watched, faults=slow, buffers={"capacity": 8})
    batches = summary.blocks[0]["updates"]
    assert wrong(summary, watched, batches=batches, bound=99) == []
    said = "\n".join(wrong(summary, watched, batches=batches, bound=0))
    assert "block0->block1: reports a staleness" in said and "block0->block1: the referee saw" in said
    assert "block0: 22 updates, expected 23" in wrong(summary, watched, batches=23, bound=99)
    watched.planned["block1->block2"] = [Fault(4, "delay"), Fault(10**6, "delay")]
    assert wrong(summary, watched, batches=batches, bound=99) == [
        "block1->block2: the faults {} have fired, of {'delay': 1} planned for the messages that were sent"
    ]
    edges = [
        {**edge, "trained": edge["trained"] - 1} if edge["name"] == "block0->block1" else edge for edge in summary.edges
    ]
    watched.planned["block1->block2"] = []
    (tampered,) = wrong(replace(summary, edges=edges), watched, batches=batches, bound=99)
    assert "block0->block1: its ledger does not add up" in tampered


def test_staleness_counts_the_versions_finished_by_the_moment_of_starting():
    finished = [1.0, 2.0, 3.0]
    assert staleness(finished, [(0.5, 0), (1.5, 0), (2.5, 0), (9.0, 0), (9.0, 2)]) == {0: 3, 1: 1, 2: 1}
