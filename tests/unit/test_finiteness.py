"""Numbers that are not finite never leave a block, or never enter its state."""

import pytest
import torch

from actors.block import Block
from actors.errors import UserError
from actors.finiteness import Finiteness, is_finite
from actors.messages import Kind
from actors.rules.local import Local
from actors.transport.outbox import Outbox
from tests.runs import Replacing, run

NAN = float("nan")
SPOILING = {"rule": {"name": None, "factory": "tests.spoiling_rule:Spoiling"}}


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_one_bad_number_among_many_is_found(bad):
    tensors = [torch.ones(3), torch.zeros(2, 5), None, torch.tensor([1, 2])]
    assert is_finite(tensors) and is_finite([torch.empty(0)])
    tensors[1][1, 3] = bad
    assert not is_finite(tensors)


def test_numbers_whose_sum_overflows_are_finite():
    assert is_finite([torch.tensor([3e38, 3e38])])
    assert not is_finite([torch.tensor([3e38, 3e38, float("inf")])])


def test_a_run_stops_at_the_first_one_and_names_block_and_batch(tmp_path):
    with pytest.raises(UserError, match=r"block1: a gradient of batch 7 is not finite; it was neither sent nor"):
        run(tmp_path / "run", **SPOILING)


def spoil(monkeypatch, where, index, batch):
    """Let a block's numbers become not finite in a batch: its weights, its credit, or one gradient of its own."""
    forward, credit, may_step = Block.forward, Block._credit, Finiteness.may_step
    spoilt = []

    def is_meant(block, batch_id):
        meant = block == index and batch_id == batch
        spoilt.extend([where] * meant)
        return meant

    def spoilt_forward(self, message, raw=None):
        if is_meant(self.place.index, message.batch_id):
            next(self.body.parameters()).data.fill_(NAN)
        return forward(self, message, raw)

    def spoilt_credit(self, p):
        return credit(self, p) * (NAN if is_meant(self.place.index, p.batch.batch_id) else 1.0)

    def spoilt_step(self, parameters):
        parameters = list(parameters)
        if is_meant(self.block, self.batch_id):
            parameters[0].grad.view(-1)[0] = NAN
        return may_step(self, parameters)

    wanted = {"weights": (Block, "forward", spoilt_forward), "credit": (Block, "_credit", spoilt_credit),
              "gradient": (Finiteness, "may_step", spoilt_step)}  # fmt: skip
    monkeypatch.setattr(*wanted[where])
    return spoilt


def sent_by_blocks(monkeypatch):
    """Note every activation and all feedback that a block has sent."""
    put, sent = Outbox.put, []

    def noted(self, message, wait_s=0.0):
        done = put(self, message, wait_s)
        if done and message.kind in (Kind.ACTIVATION, Kind.FEEDBACK) and not self.edge.startswith("source"):
            sent.append((self.edge, message.batch_id, is_finite(message.tensors.values())))
        return done

    monkeypatch.setattr(Outbox, "put", noted)
    return sent


PLACES = [("weights", "the activation"), ("credit", "feedback"), ("gradient", "a gradient")]
BACKPROP = {"rule": {"name": "backprop"}}


@pytest.mark.parametrize("schedule", [{}, {"delay_per_hop": 1}, {"name": "replay", "feedback": "as_it_arrives"}])
@pytest.mark.parametrize(("where", "what"), PLACES)
def test_nothing_that_is_not_finite_leaves_a_block_before_the_run_stops(tmp_path, monkeypatch, schedule, where, what):
    index = 2 if where == "credit" else 1
    spoilt, sent = spoil(monkeypatch, where, index, 7), sent_by_blocks(monkeypatch)
    with pytest.raises(UserError, match=rf"block{index}: {what} of batch 7 is not finite"):
        run(tmp_path / "run", **BACKPROP, schedule=schedule)
    assert spoilt and all(finite for _, _, finite in sent)
    assert {edge for edge, _, _ in sent} >= {"block0->block1", "block1->block0:feedback2"}
    if where == "weights" and not schedule.get("name"):
        assert ("block0->block1", 7, True) in sent and ("block1->block2", 7, True) not in sent


def test_a_frozen_block_passes_nothing_on_that_is_not_finite(tmp_path, monkeypatch):
    sent = sent_by_blocks(monkeypatch)
    leave = Local.leave

    def spoilt(self, h):
        return h * NAN if self.place.is_first and not self.training else leave(self, h)

    monkeypatch.setattr(Local, "leave", spoilt)
    with pytest.raises(UserError, match=r"block0: the activation of batch 22 is not finite"):
        run(tmp_path / "run", schedule={"name": "sequential"}, evaluation={"splits": []})
    assert all(finite for _, _, finite in sent)


@pytest.mark.parametrize(("where", "skipped"), [("gradient", [0, 1, 0]), ("credit", [1, 1, 0])])
def test_what_is_left_out_is_that_blocks_update_and_that_of_those_that_get_its_feedback(
    tmp_path, monkeypatch, where, skipped
):
    """A gradient of one block is nobody else's; feedback travels on as it is, so that those below learn of it."""
    reach = {"rule": {"name": "backprop", "reach": 2, "losses": "every"}}
    spoilt = spoil(monkeypatch, where, 1, 7)
    got = run(tmp_path / "run", **reach, on_nonfinite="skip")
    assert spoilt
    assert [block["updates_skipped"] for block in got.blocks] == skipped
    assert [block["updates"] for block in got.blocks] == [22 - number for number in skipped]
    assert got.test_loss == got.test_loss


def test_a_skipped_update_is_counted_and_leaves_the_state_finite(tmp_path):
    got = run(tmp_path / "run", on_nonfinite="skip", **SPOILING)
    assert [block["updates_skipped"] for block in got.blocks] == [0, 1, 0]
    assert [block["updates"] for block in got.blocks] == [22, 21, 22]
    assert got.test_accuracy is not None and got.test_loss == got.test_loss


def test_a_batch_of_bad_numbers_touches_no_block_s_state(tmp_path):
    data = Replacing(factory="tests.spoiling_rule:spoilt", classes=4, batch_size=16)
    got = run(tmp_path / "run", on_nonfinite="skip", data=data, training={"epochs": 1})
    assert [block["updates_skipped"] for block in got.blocks] == [1, 1, 1]
    assert got.test_loss == got.test_loss and got.test_accuracy is not None


def test_where_nothing_is_bad_skipping_changes_no_weight(tmp_path):
    stop, skip = (run(tmp_path / mode, on_nonfinite=mode) for mode in ("stop", "skip"))
    assert stop.weights_sha256 == skip.weights_sha256
