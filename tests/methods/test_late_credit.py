"""Late credit: T12, T29; what a stashed and a recomputed pass stand for; snapshots with batches under way."""

import copy
from functools import cache

import pytest
import torch

from actors.block import Block
from actors.block_actor import BlockActor
from actors.messages import Flags, Kind, Message
from actors.module_pass import Late
from orchestrator.plan import make_plan
from orchestrator.specs import block_spec
from tests.contract.plugin_chain import Chain
from tests.methods.recorded_chain import CNN, RecordedChain, cnn_config, equal, gradients_of
from tests.methods.test_reach import reaching
from tests.runs import run

BACKPROP = {"name": "backprop"}
LATE = ("stash", "recompute")
BLOCKS, BATCHES = 4, 10
RESTING = {"name": "sgd", "lr": 0.0}


def delayed(late="stash", s=1.0, rule=BACKPROP, **sections):
    schedule = {"delay_per_hop": s, "late": late} if s is not None else {}
    return RecordedChain(cnn_config(rule=rule, schedule=schedule, **sections))


def trained(*arguments, num_batches=BATCHES, **sections):
    chain = delayed(*arguments, **sections)
    chain.train(0, num_batches)
    return chain


def running_statistics(chain):
    return {
        f"{j}.{name}": buffer.clone()
        for j, block in enumerate(chain.blocks)
        for name, buffer in block.body.named_buffers()
    }


# ---------------------------------------------------------------- T12: exact, only late


RULES = {"all": BACKPROP, "3": reaching(3), "2 farthest": reaching(2, combine="farthest")}


@cache
def undelayed(name):
    return trained(s=None, rule=RULES[name], optimizer=RESTING, num_batches=6)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("s", [0.5, 1, 2])
@pytest.mark.parametrize("late", LATE)
def test_while_weights_rest_late_gradients_are_those_of_their_batch_bit_for_bit(late, s, name):
    now, later = undelayed(name), trained(late, s, rule=RULES[name], optimizer=RESTING, num_batches=6)
    for j in range(BLOCKS):
        assert len(now.gradients[j]) == len(later.gradients[j]) == 6
        assert all(equal(a, b) for a, b in zip(now.gradients[j], later.gradients[j], strict=True))
        assert not any(equal(a, b) for a, b in zip(now.gradients[j], later.gradients[j][1:], strict=False))


@pytest.mark.parametrize("late", LATE)
def test_without_a_delay_it_is_backprop_bit_for_bit(late):
    assert trained(late, 0).digests() == trained(s=None).digests()


@pytest.mark.parametrize("late", LATE)
def test_with_a_delay_and_learning_it_is_not_backprop(late):
    assert trained(late, 1).digests() != trained(s=None).digests()


def test_stash_and_recompute_differ_as_soon_as_weights_move():
    assert trained("stash", 1).digests() != trained("recompute", 1).digests()


# ---------------------------------------------------------------- how late


@pytest.mark.parametrize(("s", "delays"), [(0, [1, 1, 1]), (0.5, [2, 2, 1]), (1, [4, 3, 2]), (2, [7, 5, 3])])
def test_a_block_holds_as_many_batches_as_its_delay_and_no_more(s, delays):
    """D = 1 + floor(s x hops): feedback for t - D is handled just before t, so D batches are open at most."""
    assert trained("recompute", s).most_open == [*delays, 0]


@pytest.mark.parametrize("late", LATE)
def test_a_deep_delay_drains_completely(late):
    chain = trained(late, 4, num_batches=9)
    assert chain.most_open == [9, 9, 5, 0]
    assert [(block.version, block.updates) for block in chain.blocks] == [(9, 9)] * BLOCKS
    assert [len(found) for found in chain.gradients] == [9] * BLOCKS
    assert not any(block.open for block in chain.blocks)


@pytest.mark.parametrize("num_batches", [1, 2])
def test_a_run_shorter_than_its_delays_does_all_its_updates(num_batches):
    chain = trained("stash", 2, num_batches=num_batches)
    assert [block.updates for block in chain.blocks] == [num_batches] * BLOCKS


@pytest.mark.parametrize(("capacity", "s"), [(1, 2), (1, 9), (2, 4), (4, 2), (4, 4)])
def test_no_delay_and_no_buffer_size_make_blocks_wait_for_each_other_for_ever(tmp_path, capacity, s):
    """Evaluation batches fill the forward edges while feedback for which it is too early waits to be read."""
    sections = {
        "network": {"channels": [4, 4], "blocks": 3}, "data": {"size": 96, "test_size": 64, "batch_size": 8},
        "rule": BACKPROP, "schedule": {"delay_per_hop": s}, "evaluation": {"every_batches": 4},
    }  # fmt: skip
    summary = run(tmp_path / "run", buffers={"capacity": capacity}, **sections)
    assert [block["updates"] for block in summary.blocks] == [24, 24, 24]
    assert all(edge["in_flight"] == edge["buffered"] == 0 for edge in summary.edges)


def test_a_capacity_set_while_the_run_goes_on_leaves_late_edges_their_room():
    config = cnn_config(rule=BACKPROP, schedule={"delay_per_hop": 2})
    plan = make_plan(config)
    actor = BlockActor(block_spec(config, plan, 2, "run", None), plan.shapes[2])
    forward, late = (actor.outboxes[edge] for edge in ("block2->block3", "block2->block1:feedback3"))
    before = late.capacity
    actor.order("set", {"capacity": 1})
    assert (forward.capacity, late.capacity) == (1, before)
    assert before >= plan.wiring.blocks[1].late[0].delay == 5


def test_weights_do_not_depend_on_the_buffers_capacity(tmp_path):
    sections = {"rule": BACKPROP, "schedule": {"delay_per_hop": 2, "late": "recompute"}}
    runs = [run(tmp_path / str(capacity), buffers={"capacity": capacity}, **sections) for capacity in (1, 5)]
    assert len({summary.weights_sha256 for summary in runs}) == 1


# ---------------------------------------------------------------- which weights late credit meets


def one_block(late, index=1, s=2):
    config = cnn_config(rule=BACKPROP, schedule={"delay_per_hop": s, "late": late})
    plan = make_plan(config)
    block = Block(block_spec(config, plan, index, "run", None), plan.shapes[index])
    h = torch.randn(8, *plan.shapes[index], generator=torch.Generator().manual_seed(0))
    message = Message(Kind.ACTIVATION, 0, tensors={"h": h, "labels": torch.zeros(8, dtype=torch.long)})
    return block, message


def moved(block):
    with torch.no_grad():
        for parameter in block.body.parameters():
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel()).reshape(parameter.shape) + 1.0))


def by_autograd(body, message, credit):
    """The gradients at `body`'s weights and at its input."""
    body, h = copy.deepcopy(body), message.tensors["h"].clone().requires_grad_()
    body(h, message.batch_id).backward(credit)
    return gradients_of(body), h.grad


@pytest.mark.parametrize("late", LATE)
def test_stash_meets_the_weights_of_the_forward_pass_and_recompute_those_of_the_day(late):
    block, message = one_block(late)
    before = copy.deepcopy(block.body)
    h = block.now(message).up
    moved(block)
    credit = torch.randn(h.shape, generator=torch.Generator().manual_seed(1))
    old, new = by_autograd(before, message, credit), by_autograd(block.body, message, credit)
    sent = block.later(3, Message(Kind.FEEDBACK, 0, tensors={"gradient": credit}), 0)
    expected, other = (old, new) if late == "stash" else (new, old)
    assert sent.complete
    assert equal(gradients_of(block.body), expected[0]) and not equal(gradients_of(block.body), other[0])
    assert torch.equal(sent.down[3]["gradient"], expected[1])
    assert not torch.allclose(expected[1], other[1], rtol=0.01)


def test_a_recomputed_pass_is_made_again_for_every_message_with_the_weights_of_that_day():
    """Reach 3: two losses reach the block on different days; the second must not meet a graph of the first's."""
    config = cnn_config(rule=reaching(3), schedule={"delay_per_hop": 1, "late": "recompute"})
    plan = make_plan(config)
    block = Block(block_spec(config, plan, 1, "run", None), plan.shapes[1])
    _, message = one_block("recompute")
    own = {}
    rule_now = block.rule.now
    block.rule.now = lambda p, credit: own.setdefault("sent", (rule_now(p, credit), credit))[0]
    h = block.now(message).up
    first, second = (torch.randn(h.shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    moved(block)
    expected = by_autograd(block.body, message, first)[1]
    sent = block.later(2, Message(Kind.FEEDBACK, 0, tensors={"gradient": first}), 0)
    assert torch.equal(sent.down[2]["gradient"], expected)
    moved(block)
    expected = by_autograd(block.body, message, own["sent"][1] + first + second)[0]
    assert block.later(3, Message(Kind.FEEDBACK, 0, tensors={"gradient": second}), 0).complete
    assert equal(gradients_of(block.body), expected)


def test_a_stashed_weight_is_a_copy_and_a_block_without_late_credit_keeps_none():
    block, message = one_block("stash")
    block.now(message)
    (p,) = block.open.values()
    live = dict(block.body.named_parameters())
    assert p.stashed.keys() == live.keys()
    assert all(p.stashed[name].data_ptr() != live[name].data_ptr() for name in live)
    for index, s in ((3, 2), (1, 0)):
        block, _ = one_block("stash", index=index, s=s)
        assert block.late is Late.KEPT


# ---------------------------------------------------------------- T29: a batch counts once


@pytest.mark.parametrize("late", LATE)
def test_running_statistics_move_once_per_batch_and_exactly_as_in_plain_training(late):
    plain = trained(s=None, optimizer=RESTING)
    chain = delayed(late, 2, optimizer=RESTING)
    chain.take_over_after(5)  # a stashed pass, too, now runs a second time
    chain.train(0, BATCHES)
    assert all(num_open > 0 for [(_, num_open)] in chain.restored_at[:-1])
    found, expected = running_statistics(chain), running_statistics(plain)
    assert equal(found, expected)
    counts = [int(count) for name, count in found.items() if name.endswith("num_batches_tracked")]
    assert counts == [BATCHES] * 3


@pytest.mark.parametrize("late", LATE)
def test_running_statistics_count_once_while_weights_move(late):
    found = running_statistics(trained(late, 2))
    assert {int(count) for name, count in found.items() if name.endswith("num_batches_tracked")} == {BATCHES}


# ---------------------------------------------------------------- snapshots with batches under way


@pytest.mark.parametrize(
    ("rule", "precision"),
    [(BACKPROP, "fp32"), (reaching(2), "fp32"), (reaching(3), "fp32"), (reaching(3), "fp16")],
    ids=["all", "2", "3", "3 fp16"],
)
@pytest.mark.parametrize("late", LATE)
def test_new_blocks_that_take_over_half_way_go_on_bit_for_bit(late, rule, precision):
    """With dropout and batch norm. Under `stash` the new block runs again what the old one kept the graph of."""
    sections = {"rule": rule, "training": {"epochs": 3, "precision": precision}}
    undisturbed = trained(late, 2, **sections)
    chain = delayed(late, 2, **sections)
    for batch_id in (3, 6):
        chain.take_over_after(batch_id)
    chain.train(0, BATCHES)
    for j, taken in enumerate(chain.restored_at):
        assert [position for position, _ in taken] == [3, 6]
        assert all(num_open > 0 for _, num_open in taken) == (j < BLOCKS - 1)
    assert chain.digests() == undisturbed.digests()
    assert chain.losses == undisturbed.losses


def test_a_snapshot_holds_credits_that_wait_for_others_and_who_has_answered():
    chain = delayed("stash", 1, rule=reaching(3))
    seen = []
    chain.take_over_after(4)
    restored = Block.restore

    def restore(block, state):
        seen.append((block.place.index, state["open"]))
        restored(block, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "restore", restore)
        chain.train(0, 8)
    passes = [p for index, opened in seen if index == 1 for p in opened]
    assert any(p["answered"] == [2] and "credit" in p["kept"] for p in passes)
    assert all(p["stashed"] for p in passes)


def test_nothing_is_left_open_at_the_last_position():
    chain = delayed("stash", 2, rule=reaching(3))
    chain.take_over_after(5)
    chain.train(0, 6)
    assert [taken for [taken] in chain.restored_at] == [(5, 0)] * BLOCKS


# ---------------------------------------------------------------- accumulation, heads


@pytest.mark.parametrize("late", LATE)
def test_accumulated_late_gradients_are_the_sums_of_their_own_batches(late):
    single = trained(late, 2, optimizer=RESTING)
    chain = delayed(late, 2, optimizer=RESTING, training={"epochs": 3, "accumulate": 3})
    seen = [[] for _ in chain.blocks]
    for j, block in enumerate(chain.blocks):

        def step(updates, accumulated, optimizer=block.optimizers["body"], body=block.body, found=seen[j]):
            found.append((accumulated, gradients_of(body)))
            type(optimizer).step(optimizer, updates, accumulated)

        block.optimizers["body"].step = step
    chain.train(0, BATCHES)
    assert [block.updates for block in chain.blocks] == [4] * BLOCKS  # 3 + 3 + 3 + the last one
    for j in range(BLOCKS):
        assert [accumulated for accumulated, _ in seen[j]] == [3, 3, 3, 1]
        for i, (accumulated, total) in enumerate(seen[j]):
            parts = single.gradients[j][3 * i : 3 * i + accumulated]
            for name, gradient in total.items():
                torch.testing.assert_close(gradient, sum(part[name] for part in parts), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_late_credit_does_not_make_heads_late(accumulate):
    """A head's credit is its own loss's: it steps with its batch, not with the body's later update."""
    training = {"epochs": 3, "accumulate": accumulate}
    now, later = (trained("stash", how, rule=reaching(2), optimizer=RESTING, training=training) for how in (None, 2))
    for j in range(BLOCKS):
        assert len(later.head_gradients[j]) == BATCHES
        assert all(equal(a, b) for a, b in zip(now.head_gradients[j], later.head_gradients[j], strict=True))
        assert later.blocks[j].head_updates == later.blocks[j].updates == -(-BATCHES // accumulate)


def test_late_gradients_still_learn():
    for late in LATE:
        chain = delayed(late, 1, network={**CNN, "dropout": 0.0}, training={"epochs": 5})
        chain.train(0, 40)
        assert sum(chain.losses[-1][-5:]) < 0.9 * sum(chain.losses[-1][:5])


def test_feedback_of_a_batch_whose_pass_is_gone_is_refused():
    from actors.errors import MispairedMessage

    block, message = one_block("stash")
    h = block.now(message).up
    feedback = Message(Kind.FEEDBACK, 0, tensors={"gradient": torch.ones_like(h)})
    block.later(3, feedback, 0)
    block.update(Flags.NONE)
    with pytest.raises(MispairedMessage, match="block 1: feedback from block 3 is for batch 0"):
        block.later(3, feedback, 0)
    assert block.updates == 1


def test_one_block_has_no_late_credit_and_trains_as_without_a_delay():
    network = {**CNN, "blocks": 1}
    late, plain = (trained("recompute", s, network=network).digests() for s in (2, None))
    assert late == plain != Chain(cnn_config(rule=BACKPROP, network=network)).digests()
