"""With feedback as it arrives no block waits for another: found by stalling the next block after its forward pass."""

from collections import defaultdict, deque

import pytest

from actors.messages import Kind
from actors.operations import HasEnded, HasStopped, Poll, Receive, ReceiveAny, Send, Stop
from actors.replay_buffer import ReplayBuffer
from actors.replay_program import ReplayProgram
from actors.times import Times
from orchestrator.config.legality import FIFO
from tests.contract.plugin_chain import Chain, chain_config
from tests.methods.hand_driven import HandDrivenChain

BATCHES = 8
CASES = {
    "backprop, stash": ("backprop", {"late": "stash"}),
    "backprop, recompute": ("backprop", {"late": "recompute"}),
    "feedback alignment": ("feedback_alignment", {}),
    "direct feedback alignment": ("direct_feedback_alignment", {}),
    "synthetic gradients": ("synthetic_gradients", {}),
}


class ArrivingChain(Chain):
    """All batches lie ready at the source; edges hold any number of messages."""

    def __init__(self, config):
        super().__init__(config)
        self.queues = defaultdict(deque)
        for batch_id in range(BATCHES):
            self.queues["source->block0"].append(self.message(batch_id, is_last=False))
        self._running = {j: self._program(j) for j in range(len(self.blocks))}
        self._waiting = {j: next(program) for j, program in self._running.items()}

    def _program(self, j):
        return ReplayProgram(
            self.blocks[j], self.specs[j].edges, Times(), ReplayBuffer(FIFO, draw=lambda n: 0),
            bound=lambda: None, num_batches=BATCHES, max_open=BATCHES, producer_version=int,
            promise=lambda version: None, snapshot=lambda position, orders: None, report=lambda evaluation: None,
            trained=lambda message: None,
        ).run()  # fmt: skip

    def advance(self, indices):
        """Let these blocks go on by turns until each has trained enough or waits for a message."""
        moved = True
        while moved:
            moved = sum(self._advance(j) for j in indices) > 0

    def _advance(self, j):
        """Go on to the next wait; return whether there was anything to do."""
        moved = False
        while True:
            operation, answer = self._waiting[j], True
            if isinstance(operation, HasStopped | Stop):
                return moved  # it has trained enough
            if isinstance(operation, Receive | ReceiveAny):
                edges = operation.edges if isinstance(operation, ReceiveAny) else (operation.edge,)
                ready = [edge for edge in edges if self.queues[edge]]
                if not ready:
                    return moved
                answer = (ready[0], self.queues[ready[0]].popleft())
            elif isinstance(operation, Poll):
                answer = self.queues[operation.edge].popleft() if self.queues[operation.edge] else None
            elif isinstance(operation, HasEnded):
                answer = False
            elif isinstance(operation, Send):
                self.queues[operation.edge].append(operation.message)
                moved = True
            self._waiting[j] = self._running[j].send(answer)


def config(case, **schedule):
    rule, own = CASES[case]
    network = {"name": "mlp", "widths": [8, 8], "blocks": 3}
    return chain_config(rule={"name": rule}, network=network, schedule={**own, **schedule})


@pytest.mark.parametrize("case", CASES)
def test_a_block_goes_on_to_its_last_batch_while_the_next_one_is_stalled(case):
    chain = ArrivingChain(config(case, feedback="as_it_arrives"))
    chain.advance([0])
    below = chain.blocks[0]
    assert below.version == BATCHES
    assert below.updates == (BATCHES if case == "synthetic gradients" else 0), "all, with a gradient of its own"
    assert [message.kind for message in chain.queues["block0->block1"]] == [Kind.ACTIVATION] * BATCHES
    chain.advance([0, 1, 2])
    assert [block.updates for block in chain.blocks] == [BATCHES] * 3, "what was owed is paid when it arrives"
    assert not below.open


@pytest.mark.parametrize("case", CASES)
def test_in_its_fixed_place_feedback_of_a_stalled_block_is_waited_for(case):
    chain = HandDrivenChain(config(case), BATCHES)
    for j in (1, 2):
        chain.stall_before_forward(j, 0)
    chain.advance()
    assert 0 < chain.blocks[0].version < BATCHES
