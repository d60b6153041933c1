"""A chain of real blocks and programs whose every step waits for the test's consent.

Edges hold any number of messages, so that nothing but the programs themselves makes a block wait.
"""

from __future__ import annotations

from collections import defaultdict, deque

from actors.messages import Flags, Kind, Message
from actors.program import Receive, Send
from tests.contract.plugin_chain import Chain


class Stalled(Exception):
    """A block asked for the result of a backward pass that it is not allowed."""


class HandDrivenChain(Chain):
    """All batches lie ready at the source; `advance` runs the blocks as far as they get.

    Args:
        config: of the run.
        num_batches: that the source sends.
    """

    def __init__(self, config, num_batches):
        super().__init__(config)
        self.queues = defaultdict(deque)
        self._withheld = {}
        self._without_backward = {}
        for batch_id in range(num_batches):
            message = self.message(batch_id, is_last=batch_id == num_batches - 1)
            for edge in self._source_edges():
                self.queues[edge].append(message)
        for edge in self._source_edges():
            self.queues[edge].append(Message(Kind.END, num_batches, flags=Flags.NONE))
        self._running = {j: self._program(j) for j in range(len(self.blocks))}
        self._waiting = {j: next(program) for j, program in self._running.items()}

    def _source_edges(self):
        source = self.plan.wiring.source
        return (*source.up, *source.raw)

    def stall_before_forward(self, j, batch_id):
        """Give block j nothing that drives batch `batch_id` or a later one."""
        self._withheld[j] = batch_id

    def release(self):
        """End all stalls before a forward pass."""
        self._withheld = {}

    def swap(self, edge):
        """Let the second message that waits on an edge overtake the first."""
        first, second = self.queues[edge].popleft(), self.queues[edge].popleft()
        self.queues[edge].extendleft([first, second])

    def stall_after_forward(self, j, batch_id):
        """From its forward pass of `batch_id` on, block j pulls no credit back through its body, of no batch.

        Gradients of its own weights never come, which nobody waits for. Who asks for the gradient at its input,
        which others may wait for, stops there for good.
        """
        self._without_backward[j] = False
        make_pass = self.blocks[j].make_pass

        def watched(received, batch):
            self._without_backward[j] |= batch.batch_id >= batch_id
            p = make_pass(received, batch)
            pull = p.vjp

            def vjp(credit, *, weights, input, **how):
                if not self._without_backward[j]:
                    return pull(credit, weights=weights, input=input, **how)
                if input:
                    raise Stalled(f"block {j}")
                return None

            p.vjp = vjp
            return p

        self.blocks[j].make_pass = watched

    def advance(self):
        """Run every block until none gets any further; return the updates that each has made."""
        moved = True
        while moved:
            moved = False
            for j in list(self._running):
                while j in self._running and self._may(j):
                    moved = True
                    self._one_step(j)
        return [block.updates for block in self.blocks]

    def _may(self, j):
        operation = self._waiting[j]
        if not isinstance(operation, Receive):
            return True
        if not self.queues[operation.edge]:
            return False
        message = self.queues[operation.edge][0]
        drives = operation.edge == self.specs[j].edges.driver and message.kind is not Kind.EVALUATION
        return not (drives and message.batch_id >= self._withheld.get(j, message.batch_id + 1))

    def _one_step(self, j):
        operation, answer = self._waiting[j], None
        if isinstance(operation, Receive):
            answer = self.queues[operation.edge].popleft()
        elif isinstance(operation, Send):
            self.queues[operation.edge].append(operation.message)
        try:
            self._waiting[j] = self._running[j].send(answer)
        except (StopIteration, Stalled):
            del self._running[j]
