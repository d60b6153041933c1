"""Replay, staleness and what arrives when it arrives: whole runs, over both clusters."""

import json
import re
from collections import defaultdict

import pytest
import torch

from actors.block import Block
from actors.errors import UserError
from orchestrator.cluster.in_process import InProcessCluster
from tests.runs import assert_balanced, block_weights, config_of, run

CHAIN = {"blocks": 3}
ONCE = {"order": "fifo", "max_reuse": 1, "on_full": "block", "capacity": 1}
POLICIES = {
    "blocks": {"on_full": "block", "max_reuse": 2, "capacity": 3},
    "drops the oldest": {"on_full": "drop_oldest", "max_reuse": 4, "capacity": 3},
    "drops the newest": {"on_full": "drop_newest", "max_reuse": 3, "capacity": 2},
    "uniform without end": {"on_full": "drop_oldest", "order": "uniform", "capacity": 4},
    "limited": {"on_full": "drop_oldest", "max_reuse": 4, "samples_per_insert": 2.0, "capacity": 5},
    "few bytes": {"on_full": "drop_oldest", "capacity": 9, "capacity_bytes": 40_000},
}
BATCHES = 22
SLOW = [{"block": 1, "factor": 4}]


def forward_edges(summary):
    return [edge for edge in summary.edges if edge["staleness"]["bound"] is not None]


def between(summary):
    return [edge for edge in summary.edges if re.fullmatch(r"block\d->block\d", edge["name"])]


# ---------------------------------------------------------------- a bound under first in, first out


SYNTHESIZING = {"lr": 0.02, "synthesizer": {"name": "adam", "lr": 0.003}}
IN_ORDER = {
    "local": {"rule": {"name": "local"}},
    "backprop": {"rule": {"name": "backprop"}},
    "overlapping": {"rule": {"name": "backprop", "reach": 2, "losses": "every"}},
    "late": {"rule": {"name": "backprop"}, "schedule": {"delay_per_hop": 2}},
    "DFA": {"rule": {"name": "direct_feedback_alignment"}, "schedule": {"delay_per_hop": 2}},
    "synthetic inputs": {
        "rule": {"name": "synthetic_gradients", "synthetic_inputs": True},
        "schedule": {"delay_per_hop": 2, "input_delay": 1},
        "optimizer": SYNTHESIZING,
    },
    "lockstep": {"rule": {"name": "backprop"}, "schedule": {"name": "lockstep"}},
    "lockstep, synthetic inputs": {
        "rule": {"name": "synthetic_gradients", "synthetic_inputs": True},
        "schedule": {"name": "lockstep", "input_delay": 2},
        "optimizer": SYNTHESIZING,
    },
    "sequential": {"rule": {"name": "local"}, "schedule": {"name": "sequential"}},
}


@pytest.mark.parametrize("case", IN_ORDER)
def test_a_bound_changes_no_weight_and_is_kept(tmp_path, case):
    free = run(tmp_path / "free", network=CHAIN, **IN_ORDER[case])
    for bound in (0, 1, 3):
        paced = run(tmp_path / f"{bound}", network=CHAIN, staleness={"max": bound}, **IN_ORDER[case])
        assert block_weights(paced) == block_weights(free)
        assert len(forward_edges(paced)) == 2
        assert all(edge["staleness"]["max"] <= bound for edge in forward_edges(paced))
        assert_balanced(paced)


@pytest.mark.parametrize("rule", ["local", "backprop"])
def test_a_bound_of_zero_gives_lockstep_its_staleness_and_its_weights(tmp_path, rule):
    own = {"rule": {"name": rule}, "network": CHAIN}
    locked = run(tmp_path / "locked", **own, schedule={"name": "lockstep"})
    paced = run(tmp_path / "paced", **own, staleness={"max": 0})
    assert block_weights(paced) == block_weights(locked)
    assert {edge["staleness"]["max"] for each in (paced, locked) for edge in between(each)} == {0}


@pytest.mark.parametrize("capacity", [1, 4])
@pytest.mark.parametrize("bound", [0, 2])
def test_the_largest_input_delay_that_a_bound_allows_makes_no_block_wait_for_ever(tmp_path, bound, capacity):
    own = {"rule": {"name": "synthetic_gradients", "synthetic_inputs": True}, "optimizer": SYNTHESIZING}
    chain = {"network": CHAIN, "buffers": {"capacity": capacity}, "evaluation": {"every_batches": 4}}
    schedule = {"delay_per_hop": 1, "input_delay": bound + 2}
    free = run(tmp_path / "free", **own, **chain, schedule=schedule)
    paced = run(tmp_path / "paced", **own, **chain, schedule=schedule, staleness={"max": bound})
    assert block_weights(paced) == block_weights(free)
    assert [edge["staleness"]["max"] for edge in forward_edges(paced)] == [bound, bound]


def test_an_input_delay_beyond_the_bound_is_refused(tmp_path):
    """Its producer may not finish the batch that the delayed input belongs to: both would wait for ever."""
    own = {"rule": {"name": "synthetic_gradients", "synthetic_inputs": True}, "schedule": {"input_delay": 4}}
    with pytest.raises(UserError, match=r"staleness\.max: got 1 with schedule\.input_delay 4, expected at least 2"):
        config_of(tmp_path, **own, staleness={"max": 1})
    assert config_of(tmp_path, **own, staleness={"max": 2})


@pytest.mark.parametrize("bound", [0, 2])
def test_a_bound_is_kept_over_ray(tmp_path, ray_cluster, bound):
    free = run(tmp_path / "free", network=CHAIN)
    paced = run(tmp_path / "paced", cluster=ray_cluster, network=CHAIN, staleness={"max": bound}, faults={"slow": SLOW})
    assert block_weights(paced) == block_weights(free)
    assert all(edge["staleness"]["max"] <= bound for edge in forward_edges(paced))


@pytest.mark.parametrize(
    ("buffers", "capacity"),
    [
        ({"capacity": 1, "on_full": "drop_oldest"}, 8),
        ({"capacity": 1, "on_full": "drop_newest"}, 8),
        ({"capacity": 9, "on_full": "drop_oldest"}, 9),
        ({"capacity": 1}, 1),
    ],
)
def test_a_producer_does_not_wait_for_room_where_its_consumer_drops(tmp_path, buffers, capacity):
    got = run(tmp_path / "run", network=CHAIN, schedule={"name": "replay"}, buffers=buffers, faults={"slow": SLOW})
    between = [edge for edge in got.edges if edge["name"].startswith("block")]
    assert len(between) == 2 and all(edge["capacity"] == capacity for edge in between)
    assert_balanced(got)


def test_without_a_bound_messages_are_as_stale_as_buffers_allow(tmp_path):
    """The control of the tests above: the same run without pacing goes beyond their bounds."""
    free = run(tmp_path / "run", network=CHAIN, buffers={"capacity": 6})
    assert max(edge["staleness"]["max"] for edge in free.edges if edge["name"] == "block0->block1") > 3


# ---------------------------------------------------------------- replay


@pytest.mark.parametrize("policy", POLICIES)
def test_replay_trains_every_block_to_its_end_and_loses_count_of_nothing(tmp_path, policy):
    summary = run(tmp_path / "run", network=CHAIN, schedule={"name": "replay"}, buffers=POLICIES[policy])
    assert summary.status == "completed"
    assert [block["updates"] for block in summary.blocks] == [BATCHES] * 3
    assert summary.test_accuracy is not None
    assert_balanced(summary)


@pytest.mark.parametrize("policy", ["blocks", "drops the oldest", "uniform without end"])
@pytest.mark.parametrize("bound", [0, 2])
def test_replay_keeps_its_bound(tmp_path, policy, bound):
    summary = run(
        tmp_path / "run", network=CHAIN, schedule={"name": "replay"}, buffers=POLICIES[policy], staleness={"max": bound}
    )
    assert all(edge["staleness"]["max"] <= bound for edge in forward_edges(summary))
    assert [block["updates"] for block in summary.blocks] == [BATCHES] * 3
    assert_balanced(summary)


def test_replay_over_ray_goes_on_beside_a_slow_block(tmp_path, ray_cluster):
    slow = {"slow": [{"block": 1, "factor": 5}]}
    own = {"on_full": "drop_oldest", "max_reuse": 4, "capacity": 3}
    summary = run(
        tmp_path / "run", cluster=ray_cluster, network=CHAIN, schedule={"name": "replay"}, buffers=own, faults=slow
    )
    assert [block["updates"] for block in summary.blocks] == [BATCHES] * 3
    assert_balanced(summary)


@pytest.mark.parametrize("backend", ["in_process", "ray"])
def test_each_message_once_and_in_order_equals_the_pipeline(tmp_path, ray_cluster, backend):
    """T22: a buffer of one message, used once, is first in, first out."""
    cluster = ray_cluster if backend == "ray" else None
    pipeline = run(tmp_path / "pipeline", network=CHAIN)
    replay = run(tmp_path / "replay", cluster=cluster, network=CHAIN, schedule={"name": "replay"}, buffers=ONCE)
    assert block_weights(replay) == block_weights(pipeline)


def test_a_message_is_used_again_when_nothing_new_comes(tmp_path):
    own = {"on_full": "drop_oldest", "max_reuse": 4, "capacity": 3, "order": "lifo"}
    summary = run(tmp_path / "run", network=CHAIN, schedule={"name": "replay"}, buffers=own)
    for block in summary.blocks:
        assert block["uses"]["num_uses"] == BATCHES > block["uses"]["num_batches"] > BATCHES / 4


def test_of_a_source_that_is_always_ahead_no_batch_is_taken_only_to_be_dropped(tmp_path):
    own = {"on_full": "drop_oldest", "max_reuse": 4, "capacity": 2, "window": 2}
    summary = run(tmp_path / "run", network=CHAIN, schedule={"name": "replay"}, buffers=own)
    assert "full" not in summary.edges[0]["dropped"]
    assert summary.edges[1]["dropped"]["full"] > 0, "elsewhere a full buffer drops"


def test_evaluations_go_on_while_the_first_block_serves_those_behind_it(tmp_path):
    own = {"on_full": "drop_oldest", "max_reuse": 4, "capacity": 9}
    run(
        tmp_path / "run", network=CHAIN, schedule={"name": "replay"}, buffers=own,
        evaluation={"every_batches": 5, "splits": ["test"]},
    )  # fmt: skip
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    found = [line for line in lines if line["kind"] == "evaluation" and line["block"] == "block2"]
    assert [line["batch"] for line in found[:3]] == [4, 9, 14]
    assert found[-2]["batch"] >= BATCHES
    moments = [line["at_s"] for line in found]
    assert moments == sorted(set(moments)) and moments[0] > 0


def test_an_objective_that_needs_the_raw_input_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"objective: 'infopro' needs the network's input .* use schedule\.name=pipeline"
    ):
        run(tmp_path / "run", network=CHAIN, objective={"name": "infopro"}, schedule={"name": "replay"})


# ---------------------------------------------------------------- as it arrives


@pytest.mark.parametrize("rule", ["backprop", "synthetic_gradients", "direct_feedback_alignment"])
@pytest.mark.parametrize("schedule", ["pipeline", "replay"])
def test_feedback_as_it_arrives_trains_to_the_end(tmp_path, ray_cluster, rule, schedule):
    summary = run(
        tmp_path / "run", cluster=ray_cluster, rule={"name": rule}, network=CHAIN,
        schedule={"name": schedule, "feedback": "as_it_arrives"}, optimizer={"lr": 0.002},
    )  # fmt: skip
    assert summary.status == "completed"
    assert [block["updates"] for block in summary.blocks] == [BATCHES] * 3
    assert_balanced(summary)


@pytest.mark.parametrize("rule", ["backprop", "synthetic_gradients"])
@pytest.mark.parametrize("schedule", ["pipeline", "replay"])
@pytest.mark.parametrize("bound", [0, 2])
def test_a_bound_is_kept_beside_feedback_as_it_arrives(tmp_path, rule, schedule, bound):
    """Synthetic gradients are conditioned on the labels, as by default (cDNI)."""
    buffers = {"on_full": "drop_oldest", "max_reuse": 3, "capacity": 3} if schedule == "replay" else {"capacity": 6}
    summary = run(
        tmp_path / "run", rule={"name": rule}, network=CHAIN, staleness={"max": bound}, buffers=buffers,
        schedule={"name": schedule, "feedback": "as_it_arrives"}, optimizer={"lr": 0.002},
    )  # fmt: skip
    assert len(forward_edges(summary)) == 2
    assert all(edge["staleness"]["max"] <= bound for edge in forward_edges(summary))
    assert summary.status == "completed" and summary.blocks[-1]["updates"] == BATCHES
    assert_balanced(summary)


@pytest.mark.parametrize("losses", ["last", "every"])
def test_a_block_that_uses_an_activation_again_is_answered_once(tmp_path, monkeypatch, losses):
    """Every use above sends feedback; the pass below takes one of each loss, and what is left over is counted."""
    later, answers = Block.later, []

    def counting(block, origin, message, batch_id):
        answers.append((block.spec.index, batch_id, origin))
        return later(block, origin, message, batch_id)

    monkeypatch.setattr(Block, "later", counting)
    summary = run(
        tmp_path / "run", rule={"name": "backprop", "losses": losses}, network=CHAIN,
        schedule={"name": "replay", "feedback": "as_it_arrives"},
        buffers={"on_full": "drop_oldest", "order": "lifo", "max_reuse": 4, "capacity": 3},
    )  # fmt: skip
    assert answers and len(answers) == len(set(answers))
    assert sum(edge["dropped"].get("expired", 0) for edge in summary.edges) > 0
    assert_balanced(summary)


class Ending(InProcessCluster):
    """Gives up on a run in which nothing but looking goes on."""

    turns = 0

    def poll(self, wait_s):
        self.turns += 1
        assert self.turns < 60 / wait_s, "the run never ends"
        return super().poll(wait_s)


def test_blocks_whose_passes_are_no_longer_answered_end_with_fewer_updates(tmp_path):
    """The last block is done after its updates, and used most activations more than once: the others got less."""
    summary = run(
        tmp_path / "run", cluster=Ending(), rule={"name": "backprop"}, network=CHAIN,
        schedule={"name": "replay", "feedback": "as_it_arrives"}, evaluation={"every_batches": 1, "batch_size": 4},
        buffers={"on_full": "drop_oldest", "max_reuse": 50, "capacity": 1},
    )  # fmt: skip
    assert summary.status == "completed" and summary.blocks[-1]["updates"] == BATCHES
    assert all(0 < block["updates"] <= BATCHES for block in summary.blocks), "as many as were answered"
    assert_balanced(summary)


@pytest.fixture
def followed(monkeypatch):
    """By block, at every update: the gradients that its body follows, and uses it has finished beyond its updates."""
    found, update = defaultdict(list), Block.update

    def noting(block, flags):
        gradients = [p.grad.clone() for p in block.body.parameters() if p.grad is not None]
        found[block.spec.index].append((gradients, block.version - block.updates))
        update(block, flags)

    monkeypatch.setattr(Block, "update", noting)
    return found


AS_IT_ARRIVES = {"name": "pipeline", "feedback": "as_it_arrives"}


def test_one_block_at_a_time_in_process_meets_late_feedback_and_learns(tmp_path, followed):
    late = run(tmp_path / "late", rule={"name": "backprop"}, network=CHAIN, schedule=AS_IT_ARRIVES)
    waited = {index: [ahead for _, ahead in updates] for index, updates in followed.items()}
    assert max(waited[0]) > 1 and set(waited[2]) == {1}, "the last block has its own loss at once"
    followed.clear()
    exact = run(tmp_path / "exact", rule={"name": "backprop"}, network=CHAIN)
    assert {ahead for updates in followed.values() for _, ahead in updates} == {1}
    assert min(late.test_accuracy, exact.test_accuracy) > 0.35, "four classes"


@pytest.mark.parametrize("late", ["stash", "recompute"])
def test_while_weights_rest_feedback_as_it_arrives_gives_every_batch_backprops_gradients(tmp_path, followed, late):
    """T12, bit for bit."""
    own = {"rule": {"name": "backprop"}, "network": CHAIN, "optimizer": {"lr": 0.0}, "training": {"epochs": 1}}
    run(tmp_path / "late", **own, schedule={**AS_IT_ARRIVES, "late": late})
    arrived = dict(followed)
    followed.clear()
    run(tmp_path / "exact", **own)
    assert max(ahead for _, ahead in arrived[0]) > 1
    for index in range(3):
        assert len(arrived[index]) == len(followed[index]) == BATCHES // 2
        for (got, _), (expected, _) in zip(arrived[index], followed[index], strict=True):
            assert got and all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))
