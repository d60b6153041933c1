"""T01: the actors' run over Ray equals the deterministic in-process run, bit for bit."""

from pathlib import Path

import pytest

from tests.runs import block_weights, run

CUTS = {"one block": {"blocks": 1}, "two": {"blocks": 2, "cuts": None}, "by hand": {"blocks": None, "cuts": ["conv3"]}}


@pytest.mark.parametrize("rule", ["local", "backprop"])
@pytest.mark.parametrize("schedule", ["pipeline", "lockstep"])
def test_ray_equals_in_process(tmp_path, ray_cluster, rule, schedule):
    sections = {"rule": {"name": rule}, "schedule": {"name": schedule}}
    here = run(tmp_path / "here", **sections)
    there = run(tmp_path / "there", cluster=ray_cluster, **sections)
    assert block_weights(here) == block_weights(there)
    assert here.weights_sha256 == there.weights_sha256
    assert here.test_accuracy == there.test_accuracy


@pytest.mark.parametrize("rule", ["local", "backprop"])
@pytest.mark.parametrize("cut", CUTS)
def test_ray_equals_in_process_at_any_cut(tmp_path, ray_cluster, rule, cut):
    sections = {"rule": {"name": rule}, "network": CUTS[cut]}
    here = run(tmp_path / "here", **sections)
    there = run(tmp_path / "there", cluster=ray_cluster, **sections)
    assert block_weights(here) == block_weights(there)


@pytest.mark.parametrize("rule", ["local", "backprop"])
@pytest.mark.parametrize("buffers", [{"capacity": 1}, {"capacity": 2, "window": 1}, {"capacity": 9, "window": 3}])
def test_weights_do_not_depend_on_buffer_sizes(tmp_path, ray_cluster, rule, buffers):
    expected = run(tmp_path / "expected", rule={"name": rule})
    for name, cluster in (("here", None), ("there", ray_cluster)):
        got = run(tmp_path / name, cluster=cluster, rule={"name": rule}, buffers=buffers)
        assert block_weights(got) == block_weights(expected)


def test_lockstep_and_pipeline_give_equal_weights(tmp_path):
    pipeline = run(tmp_path / "pipeline")
    lockstep = run(tmp_path / "lockstep", schedule={"name": "lockstep"})
    assert block_weights(pipeline) == block_weights(lockstep)


def test_lockstep_never_overlaps_batches(tmp_path, ray_cluster):
    summary = run(tmp_path / "run", cluster=ray_cluster, schedule={"name": "lockstep"})
    for edge in summary.edges:
        assert edge["staleness"]["max"] == 0, edge


@pytest.mark.parametrize("rule", ["local", "backprop"])
def test_evaluations_never_change_the_trajectory(tmp_path, rule):
    never = run(tmp_path / "never", rule={"name": rule})
    often = run(tmp_path / "often", rule={"name": rule}, evaluation={"every_batches": 3, "batch_size": 7})
    assert block_weights(never) == block_weights(often)


def test_another_seed_gives_other_weights(tmp_path):
    assert run(tmp_path / "a").weights_sha256 != run(tmp_path / "b", seed=4).weights_sha256


def test_every_message_is_trained_on(tmp_path, ray_cluster):
    summary = run(tmp_path / "run", cluster=ray_cluster, rule={"name": "backprop"})
    assert len(summary.edges) == 5  # three forwards, two with gradients
    for edge in summary.edges:
        assert edge["sent"] == edge["trained"] > 0
        assert edge["buffered"] == edge["in_flight"] == edge["lost"] == 0


def test_a_slow_block_changes_no_weights(tmp_path, monkeypatch):
    expected = run(tmp_path / "expected")
    from actors.block import Block

    forward, calls = Block.forward, []

    def slow(block, *received):
        if block.spec.index == 1:
            calls.append(sum(i * i for i in range(20_000)))
        return forward(block, *received)

    monkeypatch.setattr(Block, "forward", slow)
    assert block_weights(run(tmp_path / "slow")) == block_weights(expected)
    assert len(calls) == 22


def test_runs_leave_the_folder_they_promise(tmp_path):
    run(tmp_path / "run")
    names = {path.name for path in Path(tmp_path / "run").iterdir()}
    assert {"config.yaml", "status.json", "metrics.jsonl", "tensorboard", "summary.json", "checkpoints"} <= names
