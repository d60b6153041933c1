"""`buffers.mode: auto` in whole runs: sizes change, weights don't."""

import json

import pytest

from orchestrator.cluster.in_process import InProcessCluster
from tests.runs import assert_balanced, block_weights, run

LONG = {"training": {"epochs": 6}, "network": {"blocks": 3}}
FORWARD = {"source->block0", "block0->block1", "block1->block2"}
METHODS = {
    "local": ({"rule": {"name": "local"}}, FORWARD),
    "late feedback": ({"rule": {"name": "backprop"}, "schedule": {"name": "pipeline", "delay_per_hop": 1}}, FORWARD),
    "driven by raw inputs": (
        {
            "rule": {"name": "synthetic_gradients", "synthetic_inputs": True},
            "optimizer": {"lr": 0.002},
            "schedule": {"name": "pipeline", "delay_per_hop": 1, "input_delay": 2},
        },
        {"source->block0", "source->block1:raw", "source->block2:raw"},
    ),
    "sequential": ({"rule": {"name": "local"}, "schedule": {"name": "sequential"}}, FORWARD),
}
"""And the edges whose size is free: that of the others follows from delays."""


class Telling(InProcessCluster):
    """Tells of waits that no actor had: first quiet ones, so that buffers shrink, then long ones, then none again."""

    looks = 0

    def poll(self, wait_s):
        return super().poll(0.002)

    def reports(self):
        self.looks += 1
        found = super().reports()
        for report in found.values():
            for facts in (*report["sends"].values(), *report["receives"].values()):
                waited = min(max(0, self.looks - 8), 6)
                facts["waited_s"] = waited * 1000.0
            for facts in report["sends"].values():
                facts["most_waiting"] = 0
        return found


def applied(folder):
    """The changes of every edge: (position, capacity), in order."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = {}
    for line in lines:
        for edge, capacity in line.get("values", {}).get("capacities", {}).items():
            assert line["event"] == "applied" and edge.startswith(f"{line['actor']}->")
            found.setdefault(edge, []).append((line["position"], capacity))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_buffers_that_grow_and_shrink_change_no_weight(tmp_path, monkeypatch, method):
    monkeypatch.setattr("orchestrator.orchestrator.REPORT_EVERY_S", 0.0)
    monkeypatch.setattr("orchestrator.auto_buffers.FILLS", 1)
    monkeypatch.setattr("orchestrator.buffer_sizing.CALM", 1)
    own, sized = METHODS[method]
    fixed = run(tmp_path / "fixed", **LONG, **own)
    auto = run(tmp_path / "auto", cluster=Telling(), buffers={"mode": "auto"}, **LONG, **own)
    assert block_weights(auto) == block_weights(fixed)
    changes = applied(tmp_path / "auto")
    assert changes.keys() == sized
    assert changes["source->block0"][-1][0] > changes["source->block0"][0][0] > 0
    for edge in sized:
        positions, capacities = zip(*changes[edge], strict=True)
        assert list(positions) == sorted(positions)
        assert min(capacities) < 4 < max(capacities), "both smaller and larger than at first"
        assert next(entry["capacity"] for entry in auto.edges if entry["name"] == edge) == capacities[-1]
    assert_balanced(auto)


RESTLESS = {"faults": {"pad": 4, "jitter": 1.0}, "evaluation": {"every_epochs": 0}, **LONG}


def looking_often(monkeypatch):
    """A short run has many intervals then."""
    monkeypatch.setattr("orchestrator.orchestrator.REPORT_EVERY_S", 0.05)
    monkeypatch.setattr("orchestrator.control.LOOK_EVERY_S", 0.02)


def test_a_buffer_that_is_too_small_grows_under_jitter_over_ray(tmp_path, ray_cluster, monkeypatch):
    looking_often(monkeypatch)
    auto = run(tmp_path / "auto", cluster=ray_cluster, buffers={"mode": "auto", "capacity": 1}, **RESTLESS)
    assert block_weights(auto) == block_weights(run(tmp_path / "plain", **LONG))
    grown = {edge: changes[0][1] for edge, changes in applied(tmp_path / "auto").items()}
    assert grown and set(grown.values()) == {2}, "one at first, and half as much again is two"
    assert max(edge["capacity"] for edge in auto.edges) > 2
    assert_balanced(auto)


def test_no_buffer_grows_beyond_its_budget_over_ray(tmp_path, ray_cluster, monkeypatch):
    looking_often(monkeypatch)
    own = {"mode": "auto", "capacity": 6, "budget_bytes": 1}
    auto = run(tmp_path / "auto", cluster=ray_cluster, buffers=own, **RESTLESS)
    assert {edge["capacity"] for edge in auto.edges} == {1}, "not even what it began with"
