"""One batch in one block: the forward pass now, credit pulled back through its graph later."""

from __future__ import annotations

from torch import Tensor, autograd

from actors.learning_rule import Batch
from actors.networks.body import Body


class ModulePass:
    """Keeps the graph of one forward pass.

    Exact as long as the weights don't change between the pass and its credit, which holds for every
    delay that the schedule allows to keep graphs for.

    Args:
        body: the block's module.
        received: input [B, ...], never written to.
        batch: what travels with it.
        input_gradient: whether the gradient at the input will be asked for.
        draw: names the random draws of this pass.
    """

    def __init__(self, body: Body, received: Tensor, batch: Batch, *, input_gradient: bool, draw: int) -> None:
        self.batch = batch
        self._body = body
        self._input = received.requires_grad_() if input_gradient else received
        self._output = body(self._input, draw)
        self.h = self._output.detach()

    def vjp(self, credit: Tensor, *, weights: bool, input: bool, keep: bool = False) -> Tensor | None:
        """Pull `credit` back through the body; see `actors.learning_rule.Pass`."""
        targets = [p for p in self._body.parameters() if p.requires_grad] if weights else []
        if not self._output.requires_grad:
            return None  # a block without parameters below it
        if weights and targets:
            inputs = [*targets, self._input] if input else targets
            self._input.grad = None
            autograd.backward(self._output, credit, retain_graph=keep, inputs=inputs)
            return self._input.grad if input else None
        if input:
            return autograd.grad(self._output, self._input, credit, retain_graph=keep)[0]
        return None
