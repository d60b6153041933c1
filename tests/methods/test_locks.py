"""The three locks of Jaderberg et al. (2017, arXiv:1608.05343), found by intervention and compared with what
each rule declares.

Real blocks and programs run in a chain whose edges never fill, and one block or more is stopped:

update lock    Block j + 1 is stalled before its forward pass of batch t. The rule has removed the lock if block
               j still finishes update t, the t-th step of its weights counted from 0.
backward lock  Block j + 1 is stalled after its forward pass of batch t, before anything is pulled back through
               its body. What follows from the forward pass alone, its activation, a loss and that loss's
               gradient at the output, still goes its way. Two forms must agree: only block j + 1 is stalled,
               or all blocks above j, so that no backward pass above j can have helped.
forward lock   Block j - 1 is stalled before its forward pass of batch t, for good. The rule has removed the lock
               if block j goes on to its bound: with input delay E, to update t + E - 1, for the next batch
               waits for the withheld activation.

A rule has a lock if some block has it.
"""

import json

import pytest

from actors.plugins import find_plugin, plugin_names
from orchestrator.cli import main
from tests.contract.plugin_chain import chain_config
from tests.methods.hand_driven import HandDrivenChain

BLOCKS, T, BATCHES = 3, 5, 9

CASES = {name: ({"name": name}, {}) for name in plugin_names("rule")} | {
    "backprop s=1": ({"name": "backprop"}, {"delay_per_hop": 1}),
    "backprop s=2": ({"name": "backprop"}, {"delay_per_hop": 2}),
    "features replay": ({"name": "backprop"}, {"delay_per_hop": 2, "late": "recompute"}),
    "overlapping": ({"name": "backprop", "reach": 2, "losses": "every"}, {}),
    "overlapping s=2": ({"name": "backprop", "reach": 2, "losses": "every"}, {"delay_per_hop": 2}),
    "interlocking": ({"name": "backprop", "reach": 2, "losses": "every", "combine": "farthest"}, {}),
    "reach 1": ({"name": "backprop", "reach": 1, "losses": "every"}, {}),
    "shallow": ({"name": "backprop", "reach": 1, "losses": "last"}, {}),
    "dfa s=2": ({"name": "direct_feedback_alignment"}, {"delay_per_hop": 2}),
    "dfa micro": ({"name": "direct_feedback_alignment", "feedback": "micro"}, {}),
    "dni s=2": ({"name": "synthetic_gradients", "conditioned": False}, {"delay_per_hop": 2}),
    "dni fully unlocked": ({"name": "synthetic_gradients", "synthetic_inputs": True}, {}),
    "dni fully unlocked, E=3": ({"name": "synthetic_gradients", "synthetic_inputs": True}, {"input_delay": 3}),
}


def chain_of(case):
    rule, schedule = CASES[case]
    network = {"name": "mlp", "widths": [8, 8], "blocks": BLOCKS}
    return HandDrivenChain(chain_config(rule=rule, schedule=schedule, network=network), BATCHES)


def declared(case):
    settings = dict(CASES[case][0])
    rule = find_plugin("rule", settings.pop("name"))
    return set(rule.locks_removed(rule.Config(**settings)))


def finishes_update_with_next_block_before_its_forward_pass(case, j):
    chain = chain_of(case)
    chain.stall_before_forward(j + 1, T)
    updates = chain.advance()
    longest = max((late.delay for late in chain.specs[j + 1].edges.late), default=1)
    assert updates[j + 1] <= T, "the stalled block trained on the batch"
    assert updates[j] > T - longest, "the stall came too early"
    return updates[j] > T


def finishes_update_with_these_after_their_forward_pass(case, j, stalled):
    chain = chain_of(case)
    for above in stalled:
        chain.stall_after_forward(above, T)
    return chain.advance()[j] > T


def updates_with_the_block_below_stalled(case, j):
    chain = chain_of(case)
    chain.stall_before_forward(j - 1, T)
    return chain.advance()[j]


@pytest.mark.parametrize("case", CASES)
def test_a_block_updates_before_the_next_ones_forward_pass_if_the_rule_removes_the_update_lock(case):
    unlocked = [finishes_update_with_next_block_before_its_forward_pass(case, j) for j in range(BLOCKS - 1)]
    assert all(unlocked) == ("update" in declared(case)), unlocked


@pytest.mark.parametrize("case", CASES)
def test_a_block_updates_before_the_next_ones_backward_pass_if_the_rule_removes_the_backward_lock(case):
    places = range(BLOCKS - 1)
    one = [finishes_update_with_these_after_their_forward_pass(case, j, [j + 1]) for j in places]
    every = [finishes_update_with_these_after_their_forward_pass(case, j, range(j + 1, BLOCKS)) for j in places]
    assert all(one) == all(every) == ("backward" in declared(case)), (one, every)


@pytest.mark.parametrize("case", CASES)
def test_a_block_goes_on_without_the_one_below_to_its_bound_if_the_rule_removes_the_forward_lock(case):
    bound = T + CASES[case][1].get("input_delay", 1)
    updates = [updates_with_the_block_below_stalled(case, j) for j in range(1, BLOCKS)]
    assert max(updates) <= bound
    assert all(count == bound for count in updates) == ("forward" in declared(case)), updates
    assert "forward" in declared(case) or max(updates) <= T, "a block can't train on what was never sent"


@pytest.mark.parametrize("case", CASES)
def test_a_stall_that_ends_leaves_no_trace_in_the_weights(case):
    undisturbed, stalled = chain_of(case), chain_of(case)
    for j in range(1, BLOCKS):
        stalled.stall_before_forward(j, T - j)
    stalled.advance()
    stalled.release()
    assert stalled.advance() == undisturbed.advance() == [BATCHES] * BLOCKS
    assert stalled.digests() == undisturbed.digests()


def removed_by_intervention(rule):
    """The locks that no block of a chain with this rule has, each as the tests above establish it."""
    bound, places = T + 1, range(BLOCKS - 1)
    return {
        lock
        for lock, is_removed in {
            "update": all(finishes_update_with_next_block_before_its_forward_pass(rule, j) for j in places),
            "backward": all(finishes_update_with_these_after_their_forward_pass(rule, j, [j + 1]) for j in places),
            "forward": all(updates_with_the_block_below_stalled(rule, j) == bound for j in range(1, BLOCKS)),
        }.items()
        if is_removed
    }


def test_the_command_prints_the_locks_that_every_rule_removes(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["methods", "--json"])
    assert not caught.value.code
    rows = json.loads(capsys.readouterr().out)
    printed = {row["name"]: set(row["removes_locks"]) for row in rows if row["kind"] == "rule"}
    assert printed == {rule: removed_by_intervention(rule) for rule in plugin_names("rule")}


def test_the_table_has_every_rule_and_says_that_its_locks_are_those_of_default_settings(capsys, monkeypatch):
    monkeypatch.setattr("orchestrator.cli.console.width", 400)
    with pytest.raises(SystemExit):
        main(["methods"])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines()]
    locks = {row[2]: row[4] for row in rows if row[1:2] == ["rule"]}
    in_order = {rule: [lock for lock in ("forward", "update", "backward") if lock in declared(rule)] for rule in locks}
    assert locks == {rule: ", ".join(found) or "none" for rule, found in in_order.items()}
    assert set(locks) == set(plugin_names("rule"))
    assert "those of a rule's default settings" in printed


def test_removing_the_update_lock_removes_the_backward_lock():
    assert all("backward" in declared(case) for case in CASES if "update" in declared(case))


def test_every_lock_is_had_by_some_rule_and_removed_by_another():
    removed = [declared(case) for case in CASES]
    for lock in ("forward", "update", "backward"):
        assert any(lock in found for found in removed) and any(lock not in found for found in removed)
