"""The conservation ledger: every message that was sent on an edge is in exactly one state, at every moment."""

import json
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from actors.task import Task
from actors.transport.outbox import Outbox
from orchestrator.cluster.contract import Ended
from orchestrator.cluster.in_process import InProcessCluster
from orchestrator.ledger import edge_ledger
from tests.mislaying_rule import LOST_AT
from tests.runs import assert_balanced, run

SHORT = {"data": {"size": 80}, "training": {"epochs": 1}, "evaluation": {"every_batches": 2}}
DROPS = {"on_full": "drop_oldest", "order": "lifo", "max_reuse": 4, "capacity": 2}
CHAINS = {
    "pipeline": {"schedule": {"name": "pipeline"}},
    "pipeline with a bound": {"schedule": {"name": "pipeline"}, "staleness": {"max": 1}},
    "late feedback": {"schedule": {"name": "pipeline", "delay_per_hop": 1}, "rule": {"name": "backprop"}},
    "driven by raw inputs": {
        "schedule": {"name": "pipeline", "delay_per_hop": 1, "input_delay": 2},
        "rule": {"name": "synthetic_gradients", "synthetic_inputs": True},
        "optimizer": {"lr": 0.002},
    },
    "lockstep": {"schedule": {"name": "lockstep"}, "rule": {"name": "backprop"}},
    "sequential": {"schedule": {"name": "sequential"}},
    "replay drops the oldest": {"schedule": {"name": "replay"}, "buffers": DROPS},
    "replay blocks": {"schedule": {"name": "replay"}, "staleness": {"max": 2}},
    "as it arrives": {
        "schedule": {"name": "replay", "feedback": "as_it_arrives"}, "buffers": DROPS, "rule": {"name": "backprop"}
    },
}  # fmt: skip


class Stepped(InProcessCluster):
    """Advances one actor at a time, at random, by single steps; after every one of them looks at every edge."""

    def __init__(self, seed):
        super().__init__()
        self.draw, self.edges, self.num_steps = random.Random(seed), (), 0
        self.states = Counter()

    def connect(self, edges):
        super().connect(edges)
        self.edges = edges

    def poll(self, wait_s):
        for _ in range(50):
            name = self.draw.choice(self._running)
            actor = self._hosts[name].actor
            for _ in range(self.draw.randint(1, 12)):
                if actor.task.is_done or not actor.task.advance(0.0):
                    break
                self.look()
            if actor.task.is_done:
                self._running.remove(name)
                return [Ended(name, facts=actor.finish())]
        return []

    def look(self):
        self.num_steps += 1
        reports = self.reports()
        for edge in self.edges:
            sent, got = reports[edge.producer]["sends"][edge.name], reports[edge.consumer]["receives"][edge.name]
            ledger = edge_ledger(sent, got)
            assert ledger.imbalance(edge.name) is None and got["imbalance"] is None
            self.states["in flight"] += ledger.in_flight > 0
            self.states["arrived"] += got["arrived"] > 0
            self.states["held"] += got["held"] > 0
            self.states.update(dict.fromkeys(ledger.dropped, 1))


EXPECTED = {"driven by raw inputs": {"held"}, "replay drops the oldest": {"held", "full"}, "as it arrives": {"held"}}


@pytest.mark.parametrize("chain", CHAINS)
def test_every_edge_is_balanced_after_every_step_in_whatever_order_actors_work(chain):
    seen = Counter()

    @settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate], database=None)
    @given(st.integers(0, 2**32))
    def balanced(seed):
        cluster = Stepped(seed)
        with tempfile.TemporaryDirectory() as folder:
            assert_balanced(run(Path(folder) / "run", cluster=cluster, **SHORT, **CHAINS[chain]))
        assert cluster.num_steps > 50
        seen.update(cluster.states)

    balanced()
    assert (+seen).keys() >= {"in flight", "arrived"} | EXPECTED.get(chain, set()), "else nothing would be shown"


# ---------------------------------------------------------------- broken on purpose


class Watched(InProcessCluster):
    """Comes back to the orchestrator after every few steps, so that it looks often."""

    def poll(self, wait_s):
        return super().poll(0.002)


@pytest.fixture
def often(monkeypatch):
    """An orchestrator that looks as often as it can."""
    monkeypatch.setattr("orchestrator.orchestrator.REPORT_EVERY_S", 0.0)


def lines_of(folder):
    return list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))


def imbalances(summary):
    return [event for event in summary.events if event["event"] == "imbalance"]


def test_a_message_that_a_program_mislays_is_reported_at_its_position_while_the_run_goes_on(
    tmp_path, monkeypatch, often
):
    received, mislaid = Task._received, []

    def mislaying(task, edges, share, wait_s):
        found = received(task, edges, share, wait_s)
        if found is not None and found[0] == "block0->block1" and found[1].batch_id == 5 and not mislaid:
            mislaid.append(found)
            task.handled["block0->block1"] -= 1
        return found

    monkeypatch.setattr(Task, "_received", mislaying)
    summary = run(tmp_path / "run", cluster=Watched(), evaluation={"every_epochs": 0})
    (wrong,) = imbalances(summary)
    assert len(mislaid) == 1
    assert (wrong["edge"], wrong["position"]) == ("block0->block1", 5), "found before the next batch was trained on"
    assert "6 messages, 5 trained, 0 buffered, 0 dropped, 1 mislaid; that does not add up" in wrong["reason"]
    lines = lines_of(tmp_path / "run")
    told = next(index for index, line in enumerate(lines) if line.get("event") == "imbalance")
    assert [line for line in lines[told:] if line["kind"] == "report" and line["batch"] < 22], "before the run's end"


def test_a_message_that_a_buffer_mislays_is_reported(tmp_path, monkeypatch):
    from actors.replay_buffer import ReplayBuffer

    insert, mislaid = ReplayBuffer.insert, []

    def mislaying(buffer, item, version, num_bytes):
        insert(buffer, item, version, num_bytes)
        if version == 4 and not mislaid:
            mislaid.append(version)
            buffer._entries.popitem()

    monkeypatch.setattr(ReplayBuffer, "insert", mislaying)
    summary = run(tmp_path / "run", schedule={"name": "replay"})
    (wrong,) = imbalances(summary)
    assert len(mislaid) == 1
    assert "1 mislaid; that does not add up" in wrong["reason"] and wrong["position"] <= 4


def test_more_received_than_sent_is_reported(tmp_path, monkeypatch, often):
    """No consumer can see that: both ends of the edge have to be compared."""
    sent = property(lambda box: box._next_sequence - 5 * (box.edge == "block0->block1" and box._next_sequence > 9))
    monkeypatch.setattr(Outbox, "num_sent", sent)
    summary = run(tmp_path / "run", cluster=Watched(), evaluation={"every_epochs": 0})
    (wrong,) = imbalances(summary)
    assert wrong["edge"] == "block0->block1" and "block0 had not sent more than" in wrong["reason"]
    assert wrong["position"] < 22


def test_a_message_mislaid_in_another_process_is_reported(tmp_path, ray_cluster):
    rule = {"name": None, "factory": "tests.mislaying_rule:Mislaying"}
    summary = run(tmp_path / "run", cluster=ray_cluster, rule=rule, evaluation={"every_epochs": 0})
    (wrong,) = imbalances(summary)
    assert (wrong["edge"], wrong["position"]) == ("block0->block1", LOST_AT + 1), "with the next message"
    assert "1 mislaid; that does not add up" in wrong["reason"]


@pytest.mark.parametrize("chain", ["late feedback", "driven by raw inputs", "replay drops the oldest", "as it arrives"])
def test_a_run_over_ray_that_is_looked_at_all_the_time_raises_no_false_alarm(tmp_path, ray_cluster, often, chain):
    summary = run(tmp_path / "run", cluster=ray_cluster, **CHAINS[chain])
    assert_balanced(summary)
    looks = [line for line in lines_of(tmp_path / "run") if line["kind"] == "report"]
    assert len(looks) > 3
