"""What tests/benchmarks/memory.py measures with: the kernel's books, and the largest of what was seen."""

import threading

import numpy as np
import pytest
import torch

from tests.benchmarks.memory import activation_bytes, config_of, table
from tests.benchmarks.memory_use import Peaks, private_bytes

MB = 2**20


def test_private_memory_grows_by_what_is_written_to_and_not_by_what_is_only_asked_for():
    before = private_bytes()
    held = np.empty(64 * MB, dtype=np.uint8)
    asked = private_bytes()
    held[:] = 1
    assert asked - before < 8 * MB
    assert 60 * MB < private_bytes() - asked < 70 * MB


def test_the_largest_figure_is_kept_and_a_process_that_ended_is_passed_over():
    seen, values = threading.Event(), iter([5, 70, 8])

    def figure():
        value = next(values)
        if value == 8:
            seen.set()
        return value

    def ended():
        raise ProcessLookupError

    with Peaks({"gone": ended, "block0": figure}) as peaks:
        assert seen.wait(20)
    assert peaks.bytes == {"gone": 0, "block0": 70}


@pytest.mark.parametrize("blocks", [2, 8])
def test_what_a_block_keeps_for_its_backward_pass_is_its_share_of_the_network_and_its_input(blocks):
    torch.set_num_threads(1)
    (whole,) = activation_bytes(config_of(1, 1, "off"))
    parts = activation_bytes(config_of(blocks, 1, "off"))
    entered = 128 * 32 * 28 * 28 * 4
    assert len(parts) == blocks
    assert sum(parts) == pytest.approx(whole + (blocks - 1) * entered, rel=0.1)
    assert max(parts) < 1.2 * (whole / blocks + entered)


def test_the_table_sets_every_block_beside_backprop():
    runs = [
        {"blocks": 0, "retention": "off", "block_bytes": [200_000_000], "activation_bytes": [150_000_000]},
        {"blocks": 2, "retention": "on", "block_bytes": [90_000_000, 100_000_000], "source_bytes": 5_000_000,
         "object_store_bytes": 30_000_000, "activation_bytes": [70_000_000, 75_000_000]},
    ]  # fmt: skip
    line = table(runs).splitlines()[2].split()
    assert line == ["2", "blocks,", "retention", "on", "100", "95", "0.50", "75", "0.500", "5", "30"]
