"""T09, T25: what a local block learns does not depend on the blocks above it, and nothing flows back."""

import pytest
import torch

from actors.block import Block
from actors.messages import Flags, Kind, Message
from actors.needs import Feedback, Place
from actors.plugins import find_plugin, plugin_names
from actors.state_tree import copied, flatten, unflatten
from orchestrator.plan import make_plan
from orchestrator.specs import block_spec
from orchestrator.wiring import wire
from tests.runs import block_weights, config_of, run


def block_of(config, index):
    plan = make_plan(config)
    return Block(block_spec(config, plan, index, "run", None), plan.shapes[index]), plan


def activation(shape, batch_id=0, flags=Flags.NONE):
    generator = torch.Generator().manual_seed(batch_id)
    h = torch.randn(8, *shape, generator=generator)
    labels = torch.randint(0, 4, (8,), generator=generator)
    return Message(Kind.ACTIVATION, batch_id, flags=flags, tensors={"h": h, "labels": labels})


def test_a_local_block_does_not_depend_on_blocks_above_it(tmp_path):
    layers = {"channels": [6, 8, 8], "blocks": 2}
    upper_rests = run(tmp_path / "a", network=layers, optimizer={"blocks": {1: {"lr": 0.0}}})
    upper_learns = run(tmp_path / "b", network=layers)
    assert block_weights(upper_rests)[0] == block_weights(upper_learns)[0]
    assert block_weights(upper_rests)[1] != block_weights(upper_learns)[1]


def test_a_backprop_block_does_depend_on_blocks_above_it(tmp_path):
    layers = {"channels": [6, 8, 8], "blocks": 2}
    a = run(tmp_path / "a", network=layers, rule={"name": "backprop"}, optimizer={"blocks": {1: {"lr": 0.0}}})
    b = run(tmp_path / "b", network=layers, rule={"name": "backprop"})
    assert block_weights(a)[0] != block_weights(b)[0]


def test_adding_a_block_changes_no_other_blocks_weights(tmp_path):
    """The first convolution is a block by itself in both runs; what follows is cut differently."""
    dropout = {"channels": [6, 8, 8], "dropout": 0.3, "blocks": None}
    two = run(tmp_path / "two", network={**dropout, "cuts": ["conv2"]})
    four = run(tmp_path / "four", network={**dropout, "cuts": ["conv2", "conv3", "output"]})
    assert block_weights(two)[0] == block_weights(four)[0]


def test_a_local_run_has_no_feedback_message(tmp_path):
    summary = run(tmp_path / "run")
    assert [edge["name"] for edge in summary.edges] == ["source->block0", "block0->block1", "block1->block2"]


@pytest.mark.parametrize("name", plugin_names("rule"))
def test_a_rule_that_removes_no_lock_waits_for_feedback_and_a_rule_without_feedback_for_none(name):
    rule = find_plugin("rule", name)
    needs = [rule.needs(rule.Config(), Place(index, 3)) for index in range(3)]
    waits = [bool(edges.late) for edges in wire(needs, schedule="pipeline").blocks]
    if needs[0].feedback is Feedback.NONE:
        assert waits == [False, False, False]
    if not rule.removes_locks:
        assert waits == [True, True, False]


def test_a_block_never_writes_to_what_it_receives(tmp_path):
    config = config_of(tmp_path / "run", network={"channels": [6, 8, 8], "blocks": 3})
    for index in range(3):
        block, plan = block_of(config, index)
        message = activation(plan.shapes[index])
        before = message.tensors["h"].clone()
        block.now(message)
        block.evaluate(message)
        assert torch.equal(message.tensors["h"], before)


def test_the_activation_sent_up_carries_no_graph(tmp_path):
    block, plan = block_of(config_of(tmp_path / "run"), 0)
    sent = block.now(activation(plan.shapes[0]))
    assert sent.up is not None and not sent.up.requires_grad and sent.up.grad_fn is None


def test_feedback_for_another_batch_is_refused(tmp_path):
    from actors.errors import MispairedMessage

    block, plan = block_of(config_of(tmp_path / "run", rule={"name": "backprop"}), 0)
    h = block.now(activation(plan.shapes[0], batch_id=0)).up
    feedback = Message(Kind.FEEDBACK, 1, tensors={"gradient": torch.ones_like(h)})
    with pytest.raises(MispairedMessage, match="is for batch 1, expected batch 0"):
        block.later(2, feedback, 0)
    assert block.updates == 0


def test_a_snapshot_restored_into_a_new_block_trains_on_alike(tmp_path):
    config = config_of(tmp_path / "run")
    first, plan = block_of(config, 1)
    second, _ = block_of(config, 1)
    for batch_id in range(3):
        train(first, activation(plan.shapes[1], batch_id))
    tensors, tree = flatten(first.snapshot())
    second.restore(unflatten(copied(tensors), tree))
    for block in (first, second):
        train(block, activation(plan.shapes[1], 3))
    assert first.digests() == second.digests()
    assert first.auxiliary_digests() == second.auxiliary_digests()
    assert (first.version, first.updates) == (second.version, second.updates) == (4, 4)


def train(block, message):
    block.now(message)
    block.finish_use()
    block.update(message.flags)
