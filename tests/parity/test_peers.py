"""The peers of tests/benchmarks/peers.py train what we train: an opponent that did less would be no opponent."""

import pytest
import torch

from actors.block import Block
from orchestrator.api import train
from tests.benchmarks.peers_backprop import Backprop
from tests.benchmarks.peers_ranks import on_ranks
from tests.benchmarks.peers_work import Work, config_of, first_losses
from tests.peer_losses import COUNT, NO_BATCH_NORM, SMALL, losses_on_a_rank


def our_losses(folder, monkeypatch, overrides):
    """The losses of the last block in a run of `rule: backprop`."""
    losses, learn = [], Block.learn

    def recorded(block, message):
        sent = learn(block, message)
        if block.place.is_last:
            losses.append(float(block.loss))
        return sent

    monkeypatch.setattr(Block, "learn", recorded)
    own = [f"run_dir={folder}/run", "placement.backend=in_process", *overrides]
    train(config_of("cnn", own, rule="backprop"), progress=False)
    return losses


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_backprop_arm_computes_the_losses_of_our_own_backprop_bit_for_bit(tmp_path, monkeypatch, blocks):
    ours = our_losses(tmp_path, monkeypatch, [*SMALL, f"network.blocks={blocks}"])
    work = Work(config_of("cnn", SMALL))
    assert len(ours) == 20 and work.plan.num_batches == 20
    assert first_losses(Backprop(work), work, 20) == ours
    assert ours[-1] < ours[0] - 0.1


def test_data_parallelism_and_both_pipelines_compute_the_losses_of_plain_backprop():
    work = Work(config_of("cnn", NO_BATCH_NORM))
    plain = torch.tensor(first_losses(Backprop(work), work, COUNT))
    first, last = on_ranks(losses_on_a_rank)
    halves = torch.tensor([first["ddp"], last["ddp"]])
    torch.testing.assert_close(halves.mean(0), plain, rtol=1e-4, atol=0)
    assert (halves[0] != halves[1]).all()
    for schedule in ("gpipe", "1f1b"):
        assert first[schedule] == [None] * COUNT
        torch.testing.assert_close(torch.tensor(last[schedule]), plain, rtol=1e-4, atol=0)
    assert plain[1:].std() > 0.001
