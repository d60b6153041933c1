"""The timeline of a run over Ray shows who worked at the same time, on blocks that rest most of a step."""

import json

import pytest

from tests.runs import run

PULLS = ("learn", "feedback")
"""Kinds of work in which a block pulls credit back."""


def pulls(folder, block):
    """The spans (begin, end) in which a block pulled credit back, s."""
    events = json.loads((folder / "timeline.json").read_text())["traceEvents"]
    (thread,) = [e["tid"] for e in events if e["name"] == "thread_name" and e["args"]["name"] == block]
    found = [e for e in events if e["ph"] == "X" and e["tid"] == thread and e["name"] in PULLS]
    return [(e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6) for e in found]


def categories(folder, block):
    """What a block's time in the timeline went to."""
    events = json.loads((folder / "timeline.json").read_text())["traceEvents"]
    (thread,) = [e["tid"] for e in events if e["name"] == "thread_name" and e["args"]["name"] == block]
    return {e["cat"] for e in events if e["ph"] == "X" and e["tid"] == thread}


def part_beside(folder, block, other):
    """The part of a block's pulling during which another block pulled, too."""
    own, theirs = pulls(folder, block), pulls(folder, other)
    together = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in own for b in theirs)
    return together / sum(end - begin for begin, end in own)


@pytest.mark.parametrize(("rule", "overlaps"), [("local", True), ("backprop", False)])
def test_updates_of_neighbours_overlap_if_the_rule_removes_the_locks_and_only_then(
    tmp_path, ray_cluster, rule, overlaps
):
    folder = tmp_path / "run"
    own = {"faults": {"pad": 6}, "training": {"epochs": 4}, "evaluation": {"every_epochs": 0}}
    run(folder, cluster=ray_cluster, rule={"name": rule}, **own)
    if not overlaps:  # a locked chain waits both ways
        assert {"wait_input", "wait_feedback", "transfer"} <= categories(folder, "block1")
    parts = [part_beside(folder, f"block{j}", f"block{j + 1}") for j in range(2)]
    assert all(part > 0.05 for part in parts) if overlaps else all(part < 0.01 for part in parts), parts
