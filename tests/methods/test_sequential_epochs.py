"""Blocks that train one after another each have their epochs at their turn: more can follow in block 0's only."""

import pytest

from actors.errors import UserError
from orchestrator import api
from tests.methods.test_sequential import SEQUENTIAL, StoppedIn
from tests.runs import block_weights, config_of, run

KEPT = {"every_batches": 2}


def stopped_in(folder, block):
    sections = {"schedule": SEQUENTIAL, "training": {"epochs": 3}, "checkpoint": KEPT}
    config = config_of(folder, **sections)
    summary = api.train(config, progress=False, cluster=StoppedIn(block))
    assert summary.status == "stopped"
    return config


def with_epochs(config, epochs):
    return config.model_copy(update={"training": config.training.model_copy(update={"epochs": epochs})})


@pytest.mark.parametrize(("block", "epochs"), [("block1", 5), ("block2", 4)])
def test_a_run_that_was_stopped_past_block_0s_turn_refuses_more_epochs_and_goes_on_with_its_own(
    tmp_path, block, epochs
):
    config = stopped_in(tmp_path / "run", block)
    with pytest.raises(UserError, match=rf"training\.epochs: got {epochs}, but .*training\.epochs=3 or choose another"):
        api.train(with_epochs(config, epochs), progress=False)
    undisturbed = run(tmp_path / "undisturbed", schedule=SEQUENTIAL, training={"epochs": 3})
    summary = api.train(config, progress=False)
    assert summary.status == "completed" and [block["updates"] for block in summary.blocks] == [33] * 3
    assert block_weights(summary) == block_weights(undisturbed)


def test_a_run_that_was_stopped_in_block_0s_turn_takes_more_epochs_as_if_it_had_begun_with_them(tmp_path):
    config = stopped_in(tmp_path / "run", "block0")
    undisturbed = run(tmp_path / "undisturbed", schedule=SEQUENTIAL, training={"epochs": 5})
    summary = api.train(with_epochs(config, 5), progress=False)
    assert summary.status == "completed" and [block["updates"] for block in summary.blocks] == [55] * 3
    assert block_weights(summary) == block_weights(undisturbed)


def test_a_finished_run_refuses_more_epochs(tmp_path):
    sections = {"schedule": SEQUENTIAL, "data": {"size": 64}}
    run(tmp_path / "run", training={"epochs": 1}, **sections)
    with pytest.raises(UserError, match=r"training\.epochs: got 2, but .* trained block after block to its end"):
        run(tmp_path / "run", training={"epochs": 2}, **sections)
