"""The benchmarks of simulated devices measure what they say."""

import argparse

import pytest
import torch

from orchestrator.cluster.in_process import InProcessCluster
from tests.benchmarks import simulated_devices, sustained
from tests.benchmarks.simulated_network import BATCH_SIZE, describe, devices, units_of

STEPS = 24


@pytest.mark.parametrize("rule", ["local", "backprop", "direct_feedback_alignment"])
def test_every_rule_makes_a_device_rest_for_its_forward_and_its_backward_pass(tmp_path, rule):
    describe(tmp_path / "network", 2, 3.0, 10_000)
    chosen = argparse.Namespace(blocks=2, compute_ms=3.0, message_mb=0.01, steps=STEPS, same_node="object_store")
    found = simulated_devices.measure(chosen, rule, 0, InProcessCluster())
    # In one process devices take turns: one may do all its steps after the warm-up in a row, each at least its rest.
    assert found["step_ms"] >= 3.0


def test_a_message_has_the_size_that_was_asked_for():
    first, last = devices(2, 0.0, units_of(4 * 2**20))
    output = first(torch.zeros(BATCH_SIZE, 1, 2, 2))
    assert output.numel() * output.element_size() == 4 * 2**20
    assert last(output).shape == (BATCH_SIZE, 2)


def test_the_time_per_step_is_that_of_the_slowest_block_after_the_warm_up():
    begins = {("block0", t): float(t) for t in range(STEPS)} | {("block1", t): 2.0 * t for t in range(STEPS)}
    begins[("block1", 0)] = -100.0
    steps = {key: (begin, begin) for key, begin in begins.items()}
    assert simulated_devices.step_s(steps, 2, STEPS) == 2.0


def test_growth_is_that_after_the_first_tenth_and_compares_the_last_tenth_with_the_first_whole_one():
    looks = [
        {"batch": 10 * i, "at_s": at, "private_bytes": 100 + i, "open_files": 7, "object_store_bytes": 5}
        for i, at in enumerate((0.0, 1.0, 2.0, 4.0))
    ]
    grown = sustained.growth(looks)
    assert grown["private_bytes"] == 2 and grown["open_files"] == 0
    assert grown["last_over_first"] == 2.0
