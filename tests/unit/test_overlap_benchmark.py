"""The benchmark of overlapping blocks reads periods and message times from a timeline, and keeps what it finds."""

import json

import pytest

from tests.benchmarks import overlap

PERIOD, MESSAGE, FORWARD = 0.06, 0.003, 0.02


def timeline(num_blocks=3, num_batches=40):
    """A trace of blocks that start a batch every PERIOD, MESSAGE after the block below has ended its forward step."""
    names = [{"ph": "M", "name": "thread_name", "pid": 0, "tid": j, "args": {"name": f"block{j}"}} for j in range(3)]
    steps = [
        {"ph": "X", "name": name, "pid": 0, "tid": j, "ts": 1e6 * begin, "dur": 1e6 * FORWARD, "args": {"batch": t}}
        for j in range(num_blocks)
        for t in range(num_batches)
        for name, begin in (("forward", t * PERIOD + j * (FORWARD + MESSAGE)), ("learn", t * PERIOD))
    ]
    return {"traceEvents": [*names, *steps]}


def test_the_forward_steps_of_a_timeline_are_told_by_block_and_batch():
    steps = overlap.forward_steps(timeline())
    assert len(steps) == 3 * 40
    assert steps["block2", 7] == pytest.approx((7 * PERIOD + 2 * (FORWARD + MESSAGE), 7 * PERIOD + 0.066))


def test_the_period_is_the_median_slope_and_the_time_of_a_message_lies_between_two_forward_steps():
    steps = overlap.forward_steps(timeline())
    assert overlap.measured_period(steps, "block2") == pytest.approx(PERIOD)
    assert overlap.message_time(steps) == pytest.approx(MESSAGE)


def test_a_late_batch_and_batches_that_the_timeline_lacks_leave_the_period_alone():
    steps = overlap.forward_steps(timeline())
    steps["block2", 20] = (99.0, 99.1)
    for batch in range(30, 33):
        del steps["block2", batch]
    assert overlap.measured_period(steps, "block2") == pytest.approx(PERIOD)


def test_a_chain_that_alternates_has_the_mean_of_its_steps_as_its_period():
    begins = [t // 2 * 0.1 + t % 2 * 0.03 for t in range(40)]
    steps = {("block0", t): (begin, begin + 0.01) for t, begin in enumerate(begins)}
    assert overlap.measured_period(steps, "block0") == pytest.approx(0.05)


def test_a_measurement_is_kept_with_its_commit_and_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "FOLDER", tmp_path)
    for name in ("local", "backprop s=0"):
        overlap.save({"arm": name, "ratio": 1.02})
    lines = [json.loads(line) for line in (tmp_path / "overlap.jsonl").read_text().splitlines()]
    assert [(line["arm"], line["ratio"]) for line in lines] == [("local", 1.02), ("backprop s=0", 1.02)]
    assert all({"commit", "versions", "machine"} <= line.keys() for line in lines)
