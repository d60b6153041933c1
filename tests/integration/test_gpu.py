"""Blocks on a CUDA device: two that share one, mixed precision, a profile. Run where one is visible."""

import json

import pytest
import torch

from orchestrator.plan_command import plan_run
from orchestrator.profiling import measure
from tests.runs import Replacing, block_weights, config_of, run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
TWO = {"network": {"blocks": 2}, "training": {"epochs": 4}}
HALVES = {"placement": {"gpus_per_block": 0.5}}


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


def test_on_a_gpu_a_block_killed_over_ray_goes_on_there(tmp_path, ray_cluster):
    kills = {"faults": {"kill": [{"actor": "block1", "batch": 20}]}, "checkpoint": {"every_batches": 8}}
    summary = run(tmp_path / "run", cluster=ray_cluster, **TWO, **HALVES, **kills)
    assert [event["actor"] for event in summary.events if event["event"] == "recovered"] == ["block1"]
    assert summary.status == "completed" and devices_of(tmp_path / "run") == ["cuda:0", "cuda:0"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("rule", ["local", "backprop"])
def test_mixed_precision_learns_about_the_same(tmp_path, precision, rule):
    sections = {**TWO, "placement": {"gpus_per_block": 1}, "rule": {"name": rule}}
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
    sections = {**TWO, "placement": {"gpus_per_block": 1}, "checkpoint": {"every_batches": 8}}
    run(tmp_path / "run", **{**sections, "training": {"epochs": 2}})
    longer = run(tmp_path / "run", **sections)
    assert longer.status == "completed" and longer.epochs == 4
    assert [event["event"] for event in longer.events].count("resumed") == 1


def test_blocks_that_share_a_process_and_a_gpu_learn_the_same_as_in_processes_of_their_own(tmp_path, ray_cluster):
    """In one process activations stay on the device; between two they go through pinned memory of the host."""
    apart = run(tmp_path / "apart", cluster=ray_cluster, **TWO, **HALVES)
    shared = {"placement": {"gpus_per_block": 0.5, "blocks_per_actor": 2}}
    together = run(tmp_path / "together", cluster=ray_cluster, **TWO, **shared)
    assert devices_of(tmp_path / "together") == ["cuda:0", "cuda:0"]
    assert block_weights(together) == block_weights(apart)


@pytest.mark.parametrize("rule", ["local", "backprop"])
def test_on_a_gpu_the_run_over_ray_equals_the_run_in_one_process(tmp_path, ray_cluster, rule):
    """Copies beside the computing change nothing, whichever of them a message needs."""
    sections = {**TWO, "rule": {"name": rule}}
    alone = run(tmp_path / "alone", **sections, placement={"gpus_per_block": 1})
    over_ray = run(tmp_path / "ray", cluster=ray_cluster, **sections, **HALVES)
    assert block_weights(over_ray) == block_weights(alone)
