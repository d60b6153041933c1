"""Arms are run once each, whatever interrupts them, and their paces are read from the summary."""

import copy
from types import SimpleNamespace

import pytest

from orchestrator.cluster.in_process import InProcessCluster
from tests.benchmarks.arms import lines_of, make_arm, origin, run_missing
from tests.benchmarks.methods_results import Results
from tests.benchmarks.paces import block_paces, edge_staleness, is_balanced
from tests.runs import SMALL


def arm_of(seed=3, **sections):
    return make_arm({"seed": seed}, {**SMALL, "training": {"epochs": 1}}, {"seed": seed, **sections})


def measure(arm, summary, directory):
    return {"updates": summary.blocks[0]["updates"], "metrics": (directory / "metrics.jsonl").exists()}


def carry_out(arms, results):
    run_missing(arms, results, measure, cluster=lambda arm: InProcessCluster())
    return lines_of(arms, results)


def test_layers_are_merged_section_by_section_and_leave_their_sources_alone():
    base = {**SMALL, "buffers": {"capacity": 3}, "seed": 1}
    before = copy.deepcopy(base)
    arm = make_arm({}, base, {"buffers": {"window": 2}, "seed": 2})
    assert (arm.config.buffers.capacity, arm.config.buffers.window, arm.config.seed) == (3, 2, 2)
    assert base == before


def test_what_an_arm_depends_on_makes_its_hash_and_nothing_else():
    one = arm_of()
    assert arm_of(placement={"threads": 2}).config_hash == one.config_hash
    assert make_arm({"called": "else"}, {**SMALL, "training": {"epochs": 1}}).config_hash == one.config_hash
    others = [
        arm_of(4), arm_of(faults={"pad": 2}), arm_of(buffers={"capacity": 9}), arm_of(evaluation={"every_batches": 2}),
        make_arm({}, {**SMALL, "training": {"epochs": 1}}, beside={"share": 0.1}),
    ]  # fmt: skip
    assert len({arm.config_hash for arm in [one, *others]}) == 6


def test_an_arm_that_has_a_line_is_not_run_again(tmp_path, capsys):
    arms, file = [arm_of(0), arm_of(1)], tmp_path / "lines.jsonl"
    first = carry_out(arms[:1], Results(file))
    assert [(line["status"], line["updates"], line["metrics"]) for line in first] == [("completed", 11, True)]
    assert first[0]["arm"] == {"seed": 0} and first[0]["wall_s"] > 0 and first[0]["versions"]["torch"]
    capsys.readouterr()
    both = carry_out(arms, Results(file))
    assert [line["arm"]["seed"] for line in both] == [0, 1]
    assert capsys.readouterr().out.count("1 of 1: seed 1") == 1
    assert len(file.read_text().splitlines()) == 2


def test_an_arm_that_raises_has_a_line_with_the_reason_and_can_be_repeated(tmp_path):
    broken = arm_of(network={"name": "cnn", "channels": [6], "blocks": 3})
    file = tmp_path / "lines.jsonl"
    (line,) = carry_out([broken], Results(file))
    assert line["status"] == "failed" and "network" in line["reason"] and "wall_s" not in line
    assert not lines_of([broken], Results(file, forget_failed=True))


def test_no_arm_is_started_after_its_time(tmp_path):
    results = Results(tmp_path / "lines.jsonl")
    run_missing([arm_of()], results, measure, cluster=lambda arm: pytest.fail("started"), minutes=-1)
    assert not results.lines


def test_paces_are_taken_from_the_first_use_to_the_last():
    uses = {"num_uses": 41, "num_batches": 20, "from_s": 2.0, "to_s": 12.0}
    summary = SimpleNamespace(wall_s=20.0, blocks=[{"uses": uses, "time_fraction": {"compute": 0.41}}])
    (found,) = block_paces(summary, batch_size=100)
    assert found["updates_per_s"] == 4.0
    assert found["distinct_samples_per_s"] == pytest.approx(4 * 100 * 20 / 41, abs=0.1)
    assert found["compute_s"] == 0.2


def test_staleness_is_told_of_edges_between_blocks_only():
    stale = {"mean": 1.0, "p99": 2, "max": 3, "bound": 4, "histogram": {}}
    names = ("source->block0", "block0->block1", "block1->block0:feedback1", "source->block1:raw")
    edges = [{"name": name, "staleness": stale, "dropped": {"full": 2, "not needed": 3}} for name in names]
    assert edge_staleness(SimpleNamespace(edges=edges)) == {
        "block0->block1": {"mean": 1.0, "p99": 2, "max": 3, "bound": 4, "dropped": 5}
    }


def test_a_ledger_is_balanced_if_every_message_is_in_one_state_and_none_lost():
    edge = {"sent": 10, "trained": 5, "buffered": 1, "in_flight": 1, "dropped": {"full": 3}, "lost": 0}
    assert is_balanced(edge)
    assert not is_balanced({**edge, "trained": 6}) and not is_balanced({**edge, "trained": 4, "lost": 1})


def test_the_origin_names_every_commit_and_machine():
    lines = [{"commit": c, "machine": {"cores": n, "processor": "P"}} for c, n in (("b", 2), ("a", 2), ("a", 4))]
    assert origin(lines) == "Commit a, b. 2 cores of P. 4 cores of P."
    assert origin([]) == "Commit none yet."
