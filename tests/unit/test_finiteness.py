"""Numbers that are not finite never leave a block, or never enter its state."""

import pytest
import torch

from actors.errors import UserError
from actors.finiteness import is_finite
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
    with pytest.raises(UserError, match=r"block1: a gradient of batch 7 is not finite; nothing was sent"):
        run(tmp_path / "run", **SPOILING)


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
