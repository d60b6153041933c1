from collections import Counter

import pytest

from tests.benchmarks.soak_checks import planned, wrong_between
from tests.benchmarks.soak_plan import BOUND, arms, faults_of, num_batches


@pytest.mark.parametrize("batches", [20, 500, 20_000])
def test_every_block_makes_the_updates_asked_for_under_a_bound_and_slow_downs(batches):
    planned_arms = arms(batches)
    assert [num_batches(arm) for arm in planned_arms] == [batches] * 4
    assert len({arm.key for arm in planned_arms}) == 4
    for arm in planned_arms:
        assert arm.config.staleness.max == BOUND < arm.config.buffers.capacity
        assert arm.config.faults.jitter and len(arm.config.faults.slow) == 2


def test_on_the_spoiled_wire_every_edge_has_its_own_faults_and_on_the_good_one_none():
    good, spoiled = arms(500)[0], arms(500)[2]
    assert (good.facts["wire"], spoiled.facts["wire"]) == ("good", "spoiled")
    assert not faults_of(good, "block0->block1")
    first, second = faults_of(spoiled, "block0->block1"), faults_of(spoiled, "block1->block2")
    assert len(first) > 10 and [f.sequence for f in first] != [f.sequence for f in second]
    assert first == faults_of(spoiled, "block0->block1")


def test_only_faults_of_messages_that_were_sent_are_due():
    faults = faults_of(arms(500)[2], "source->block0")
    assert planned(faults, 500).total() == len(faults)
    assert planned(faults, faults[3].sequence) == Counter(fault.action for fault in faults[:3])


def test_weights_that_depend_on_the_wire_are_told_under_a_pipeline_and_nowhere_else():
    def line(schedule, wire, weights):
        return {"arm": {"schedule": schedule, "wire": wire}, "weights_sha256": weights}

    replays = [line("replay", "good", "a"), line("replay", "spoiled", "b")]
    assert wrong_between([*replays, line("pipeline", "good", "c"), line("pipeline", "spoiled", "c")]) == []
    assert wrong_between([line("pipeline", "good", "c"), line("pipeline", "spoiled", "d")]) == [
        "pipeline: the weights differ between the good wire and the spoiled one"
    ]
