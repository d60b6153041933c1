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
