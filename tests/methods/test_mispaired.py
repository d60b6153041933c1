"""T24: under first in, first out a message of another batch than the one that is due raises, and teaches nothing."""

import pytest

from actors.errors import MispairedMessage
from tests.contract.plugin_chain import chain_config
from tests.methods.hand_driven import HandDrivenChain

T, BATCHES = 3, 6
LOCAL = {"name": "local"}
SYNTHETIC = {"name": "synthetic_gradients", "synthetic_inputs": True}
EDGES = {
    "from the source": (LOCAL, "cross_entropy", "source->block0", 0),
    "from the block below": (LOCAL, "cross_entropy", "block0->block1", 1),
    "the raw input that drives": (SYNTHETIC, "cross_entropy", "source->block2:raw", 2),
    "the raw input beside another driver": (LOCAL, "infopro", "source->block1:raw", 1),
}


@pytest.mark.parametrize("case", EDGES)
def test_a_message_that_overtakes_another_raises_and_its_block_learns_nothing_from_it(case):
    rule, objective, edge, j = EDGES[case]
    network = {"name": "cnn", "channels": [4, 4], "pool_after": [], "blocks": 3}
    chain = HandDrivenChain(chain_config(network=network, rule=rule, objective={"name": objective}), BATCHES)
    chain.stall_before_forward(j, T)
    chain.advance()
    before = chain.blocks[j].digests()
    chain.swap(edge)
    chain.release()
    with pytest.raises(
        MispairedMessage, match=rf"edge {edge}: got batch {T + 1}, expected {T}; nothing was trained on it"
    ):
        chain.advance()
    assert (chain.blocks[j].version, chain.blocks[j].digests()) == (T, before)


BACKPROP, DIRECT, PREDICTED = (
    {"name": "backprop"},
    {"name": "direct_feedback_alignment"},
    {"name": "synthetic_gradients"},
)
LATE = {
    "from the next block": (BACKPROP, {"delay_per_hop": 2}, "block1->block0:feedback2", 0, "feedback from block 2"),
    "from the last block": (DIRECT, {"delay_per_hop": 2}, "block2->block1:feedback2", 1, "feedback from block 2"),
    "a synthesizer's target": (PREDICTED, {"delay_per_hop": 2}, "block1->block0:feedback1", 0, "feedback from block 1"),
    "a late activation": (SYNTHETIC, {"delay_per_hop": 2}, "block0->block1", 1, "the predecessor's activation"),
}


@pytest.mark.parametrize("case", LATE)
def test_late_input_that_overtakes_another_raises_and_its_block_learns_nothing_from_it(case):
    rule, schedule, edge, j, what = LATE[case]
    network = {"name": "cnn", "channels": [4, 4], "pool_after": [], "blocks": 3}
    chain = HandDrivenChain(chain_config(network=network, rule=rule, schedule=schedule), 2 * BATCHES)
    chain.stall_before_forward(j, 2 * T)
    chain.advance()
    expected, got = (message.batch_id for message in list(chain.queues[edge])[:2])
    chain.swap(edge)
    before = noted_before_late_input(chain.blocks[j])
    chain.release()
    with pytest.raises(MispairedMessage, match=f"{what} is for batch {got}, expected batch {expected}; nothing was"):
        chain.advance()
    assert got == expected + 1
    assert state_of(chain.blocks[j]) == before[-1]


def noted_before_late_input(block):
    """The block's states, from now on, each time before it handles late input."""
    noted = []

    def watched(handle):
        def noting(*arguments):
            noted.append(state_of(block))
            return handle(*arguments)

        return noting

    block.later, block.late_activation = watched(block.later), watched(block.late_activation)
    return noted


def state_of(block):
    return block.updates, block.synthesizer_updates, block.digests(), block.auxiliary_digests()
