"""Blocks on a CUDA device: every method, deaths, ways to share one, mixed precision, a profile. Run where one is."""

import importlib.util
import json

import pytest
import torch

from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.plan_command import plan_run
from orchestrator.profiling import measure
from tests.parity.test_methods import METHODS, sections_of
from tests.runs import Replacing, assert_balanced, block_weights, config_of, run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
TWO = {"network": {"blocks": 2}, "training": {"epochs": 4}}
ONE_GPU = {"placement": {"gpus_per_block": 1}}
HALVES = {"placement": {"gpus_per_block": 0.5}}
LARGE = {
    "data": {"shape": [2, 16, 16]},
    "network": Replacing(name="cnn", channels=[8, 8, 8], pool_after=[3], blocks=3),
    "rule": {"name": "backprop"},
    "schedule": {"delay_per_hop": 1},
    "training": {"channels_last": True},
}
"""What travels between its blocks has 128 KiB, in both directions: enough to be copied beside the computing."""
QUARTERS = {"gpus_per_block": 0.25}


def devices_of(folder):
    return [block["device"] for block in json.loads((folder / "status.json").read_text())["blocks"]]


def losses_of(summary):
    return [block["loss"] for block in summary.blocks]


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """What the same two blocks learn on the CPU."""
    return run(tmp_path_factory.mktemp("cpu") / "run", **TWO)


def test_two_blocks_share_a_gpu_over_ray_and_learn_what_they_learn_on_the_cpu(tmp_path, ray_cluster, on_cpu):
    summary = run(tmp_path / "run", cluster=ray_cluster, **TWO, **HALVES)
    assert summary.status == "completed" and devices_of(tmp_path / "run") == ["cuda:0", "cuda:0"]
    assert losses_of(summary) == pytest.approx(losses_of(on_cpu), rel=0.02)
    assert summary.test_loss == pytest.approx(on_cpu.test_loss, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_snapshots_change_no_weight_of_a_method_on_a_gpu(tmp_path, method):
    """A second run of the same numbers, too: the kernels are deterministic."""
    sections = sections_of(method)
    if sections.get("schedule", {}).get("name") == "replay":
        pytest.skip("replay is not deterministic by definition")
    epoch = {"training": {**sections.pop("training", {}), "epochs": 1}}
    without = run(tmp_path / "without", **sections, **epoch, **ONE_GPU)
    assert set(devices_of(tmp_path / "without")) == {"cuda:0"}
    kept = run(tmp_path / "kept", **sections, **epoch, **ONE_GPU, checkpoint={"every_batches": 2})
    assert len([event for event in kept.events if event["event"] == "checkpoint"]) >= 5
    assert block_weights(kept) == block_weights(without)


@pytest.mark.parametrize("actor", ["block0", "block1"])
def test_on_a_gpu_a_block_killed_over_ray_changes_no_weight(tmp_path, ray_cluster, actor):
    kills = {"faults": {"kill": [{"actor": actor, "batch": 13}]}, "checkpoint": {"every_batches": 4}}
    killed = run(tmp_path / "run", cluster=ray_cluster, **LARGE, **kills, placement=QUARTERS)
    assert [event["actor"] for event in killed.events if event["event"] == "recovered"] == [actor]
    assert devices_of(tmp_path / "run") == ["cuda:0"] * 3
    assert block_weights(killed) == block_weights(run(tmp_path / "alone", **LARGE, **ONE_GPU))
    assert_balanced(killed)


def test_a_chain_may_cross_between_gpu_and_processor(tmp_path, ray_cluster):
    places = {"gpus_per_block": 0.25, "blocks": {1: {"gpus": 0}}}
    summary = run(tmp_path / "run", cluster=ray_cluster, **LARGE, placement=places)
    on_cpu = run(tmp_path / "cpu", **LARGE)
    assert devices_of(tmp_path / "run") == ["cuda:0", "cpu", "cuda:0"]
    assert losses_of(summary)[-1] == pytest.approx(losses_of(on_cpu)[-1], rel=0.05)
    assert summary.test_loss == pytest.approx(on_cpu.test_loss, rel=0.05)
    assert_balanced(summary)


@pytest.mark.skipif(importlib.util.find_spec("nixl") is None, reason="NIXL is not installed")
def test_tensors_that_are_fetched_from_a_gpu_change_no_weight(tmp_path, ray_cluster):
    direct = RayCluster(keep=True, is_direct=True)
    placement = {**QUARTERS, "device_transport": "rdt"}
    got = run(tmp_path / "direct", cluster=direct, **LARGE, placement=placement)
    assert devices_of(tmp_path / "direct") == ["cuda:0"] * 3
    assert block_weights(got) == block_weights(run(tmp_path / "alone", **LARGE, **ONE_GPU))
    assert_balanced(got)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_on_a_gpu_compiled_layers_learn_about_the_same(tmp_path):

    def num_compiled():
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    plain = run(tmp_path / "plain", **TWO, **ONE_GPU)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = run(tmp_path / "compiled", **{**TWO, "training": {"epochs": 4, "compile": True}}, **ONE_GPU)
    assert compiled.test_loss == pytest.approx(plain.test_loss, rel=0.05)
    assert num_compiled() >= 3, "layers were computed as they are"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("rule", ["local", "backprop"])
def test_mixed_precision_learns_about_the_same(tmp_path, precision, rule):
    sections = {**TWO, **ONE_GPU, "rule": {"name": rule}}
    exact = run(tmp_path / "fp32", **sections)
    mixed = run(tmp_path / precision, **{**sections, "training": {"epochs": 4, "precision": precision}})
    assert devices_of(tmp_path / precision) == ["cuda:0", "cuda:0"]
    assert mixed.test_loss == pytest.approx(exact.test_loss, rel=0.1)
    assert block_weights(mixed) != block_weights(exact), "nothing was computed in it"


def test_a_profile_is_of_the_gpu(tmp_path):
    sections = {"network": Replacing({"name": "mlp", "widths": [2048], "blocks": 2}), "rule": {"name": "backprop"}}
    torch.cuda.reset_peak_memory_stats()
    profile = measure(config_of(tmp_path / "run", **sections, placement={"gpus_per_block": 1}), 0.2)
    first, second = profile.blocks
    assert torch.cuda.max_memory_allocated() >= first.parameter_bytes + second.parameter_bytes
    assert first.flops == 2 * (2 * 16 * 128 * 2048) and second.flops == 3 * (2 * 16 * 2048 * 4)
    facts = plan_run(config_of(tmp_path / "run", **sections, placement={"gpus_per_block": 1}), seconds=0.2)
    assert all(block["step_s"] > 0 for block in facts["blocks"])


def test_a_checkpoint_of_a_gpu_goes_on_there(tmp_path):
    """Every tensor that is written comes back to its device."""
    sections = {**TWO, **ONE_GPU, "checkpoint": {"every_batches": 8}}
    run(tmp_path / "run", **{**sections, "training": {"epochs": 2}})
    longer = run(tmp_path / "run", **sections)
    assert longer.status == "completed" and longer.epochs == 4
    assert [event["event"] for event in longer.events].count("resumed") == 1
    assert block_weights(longer) == block_weights(run(tmp_path / "at once", **sections))


def test_blocks_that_share_a_process_and_a_gpu_learn_the_same_as_in_processes_of_their_own(tmp_path, ray_cluster):
    """In one process activations stay on the device; between two they go through pinned memory of the host."""
    apart = run(tmp_path / "apart", cluster=ray_cluster, **TWO, **HALVES)
    shared = {"placement": {"gpus_per_block": 0.5, "blocks_per_actor": 2}}
    together = run(tmp_path / "together", cluster=ray_cluster, **TWO, **shared)
    assert devices_of(tmp_path / "together") == ["cuda:0", "cuda:0"]
    assert block_weights(together) == block_weights(apart)


@pytest.mark.parametrize("same_node", ["object_store", "socket"])
def test_on_a_gpu_the_run_over_ray_equals_the_run_in_one_process(tmp_path, ray_cluster, same_node):
    """Copies beside the computing change nothing, whichever of them a message needs."""
    alone = run(tmp_path / "alone", **LARGE, **ONE_GPU)
    over_ray = run(tmp_path / "ray", cluster=ray_cluster, **LARGE, placement={**QUARTERS, "same_node": same_node})
    assert devices_of(tmp_path / "ray") == ["cuda:0"] * 3
    assert block_weights(over_ray) == block_weights(alone)
