"""Blocks that share a process learn what they would learn alone, bit for bit, also when that process dies."""

import json

import pytest

from actors.errors import RunError
from orchestrator.config.sharing import blocks_of_actors, gpu_of, shared_place
from tests.runs import Replacing, assert_balanced, block_weights, config_of, run

MLP = Replacing(name="mlp", widths=[12, 10, 8], blocks=4)
DROPPING = Replacing(factory="tests.dropping_network:build", cuts=["3", "6", "9"])
METHODS = {
    "local": {"network": DROPPING},
    "backprop": {"rule": {"name": "backprop"}, "network": DROPPING},
    "late backprop": {
        "rule": {"name": "backprop"}, "network": DROPPING, "schedule": {"delay_per_hop": 2, "late": "recompute"},
    },
    "direct": {"rule": {"name": "direct_feedback_alignment"}, "network": MLP},
    "lockstep": {"rule": {"name": "backprop"}, "schedule": {"name": "lockstep"}, "network": MLP},
}  # fmt: skip
SHARED = {"placement": {"blocks_per_actor": 2}}
KEEPING = {"checkpoint": {"every_batches": 4}, "evaluation": {"every_batches": 7}}


def pids(folder):
    return [block["pid"] for block in json.loads((folder / "status.json").read_text())["blocks"]]


def events(summary, kind):
    return [event for event in summary.events if event["event"] == kind]


@pytest.mark.parametrize("method", METHODS)
def test_sharing_an_actor_changes_no_weight(tmp_path, ray_cluster, method):
    here = run(tmp_path / "here", **METHODS[method])
    shared = run(tmp_path / "shared", cluster=ray_cluster, **METHODS[method], **SHARED)
    alone = run(tmp_path / "alone", cluster=ray_cluster, **METHODS[method])
    assert block_weights(shared) == block_weights(alone) == block_weights(here)
    assert shared.weights_sha256 == here.weights_sha256 and shared.test_accuracy == here.test_accuracy
    assert_balanced(shared)
    first, second, third, fourth = pids(tmp_path / "shared")
    assert first == second != third == fourth
    assert len(set(pids(tmp_path / "alone"))) == 4


@pytest.mark.parametrize("method", ["backprop", "late backprop", "direct"])
@pytest.mark.parametrize(("mode", "actor"), [("local", "block1"), ("local", "block2"), ("global", "block1")])
def test_a_killed_process_takes_its_blocks_with_it_and_changes_no_weight(tmp_path, ray_cluster, method, mode, actor):
    here = run(tmp_path / "here", **METHODS[method])
    kills = {"kill": [{"actor": actor, "at": "step", "batch": 11}]}
    got = run(
        tmp_path / "run", cluster=ray_cluster, **METHODS[method], **SHARED, **KEEPING, faults=kills,
        recovery={"mode": mode},
    )  # fmt: skip
    lost = ["block0", "block1"] if actor == "block1" else ["block2", "block3"]
    assert sorted(event["actor"] for event in events(got, "lost")) == lost
    assert [block["restarts"] for block in got.blocks] == [int(f"block{index}" in lost) for index in range(4)]
    assert block_weights(got) == block_weights(here) and got.test_accuracy == here.test_accuracy
    assert_balanced(got)
    first, second, third, fourth = pids(tmp_path / "run")
    assert first == second != third == fourth


def test_a_process_of_several_blocks_counts_as_one_failure(tmp_path, ray_cluster):
    kills = {"kill": [{"actor": "block3", "at": "step", "batch": 9}]}
    got = run(
        tmp_path / "run", cluster=ray_cluster, network=MLP, placement={"blocks_per_actor": 4}, faults=kills,
        recovery={"mode": "local", "max_failures": 1}, checkpoint={"every_batches": 4},
    )  # fmt: skip
    assert len(events(got, "lost")) == 4 and got.status == "completed"
    assert block_weights(got) == block_weights(run(tmp_path / "here", network=MLP))


def test_a_block_that_raises_takes_its_process_with_it_and_raises_again(tmp_path, ray_cluster):
    failing = {"rule": Replacing(factory="tests.failing_rule:Failing"), "recovery": {"mode": "local"}}
    with pytest.raises(RunError, match="block1 raised at batch 7 in 2 lives"):
        run(tmp_path / "run", cluster=ray_cluster, network=MLP, **failing, **SHARED, **KEEPING)
    written = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    lost = [line["actor"] for line in map(json.loads, written) if line.get("event") == "lost"]
    assert lost == ["block1", "block0"] * 2


@pytest.mark.parametrize(
    ("num_blocks", "per_actor", "sizes"),
    [(4, None, [1, 1, 1, 1]), (4, 2, [2, 2]), (5, 2, [2, 2, 1]), (7, 3, [3, 2, 2]), (3, 3, [3]), (1, 1, [1])],
)
def test_neighbours_share_actors_in_parts_as_equal_as_can_be(tmp_path, num_blocks, per_actor, sizes):
    placement = config_of(tmp_path).placement.model_copy(update={"blocks_per_actor": per_actor})
    found = blocks_of_actors(placement, num_blocks)
    assert [len(blocks) for blocks in found] == sizes
    assert [index for blocks in found for index in blocks] == list(range(num_blocks))


def test_what_blocks_ask_for_adds_up(tmp_path):
    asked = {
        "backend": "ray", "blocks_per_actor": 3, "gpus_per_block": 1, "resources": {"x": 0.1},
        "blocks": {1: {"cpus": 2.5, "gpus": 0}},
    }  # fmt: skip
    placement = config_of(tmp_path, placement=asked).placement
    place = shared_place(placement, range(3), 0.1)
    assert (place.cpus, place.gpus, place.resources) == (2.7, 2, {"x": pytest.approx(0.3)})
    assert [gpu_of(placement, range(3), index) for index in range(3)] == [0, 1, 1]
