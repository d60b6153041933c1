"""Finds numbers that are not finite before they leave a block or enter its state.

Activations and feedback are looked at before they are sent, losses and gradients before they are followed; what a batch
has sent until then is finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from actors.errors import UserError


class Finiteness:
    """Stops a run at the first number that is not finite, or keeps it out of the block's state.

    Args:
        block: index of the block.
        is_skipping: whether the batch goes on without the block's update; what is not finite travels on, so that
            every block learns of it.

    `num_skipped` counts the updates that the block has left out.
    """

    def __init__(self, block: int, *, is_skipping: bool) -> None:
        self.block, self.is_skipping = block, is_skipping
        self.batch_id = -1
        self.num_skipped = 0

    def check(self, what: str, tensors: Iterable[Tensor | None]) -> None:
        """Raise if one of `tensors` is not finite and the run is to stop.

        Raises:
            UserError: names block, batch and what it is.
        """
        if not self.is_skipping and not is_finite(tensors):
            raise UserError(
                f"block{self.block}: {what} of batch {self.batch_id} is not finite; it was neither sent "
                f"nor followed; lower the learning rate, set optimizer.clip, or leave such updates out with "
                f"on_nonfinite=skip"
            )

    def may_step(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether the gradients are finite; if they are not and the run goes on, they are cleared.

        Raises:
            UserError: as `check`.
        """
        parameters = list(parameters)
        gradients = [parameter.grad for parameter in parameters]
        self.check("a gradient", gradients)
        if not self.is_skipping or is_finite(gradients):
            return True
        for parameter in parameters:
            parameter.grad = None
        return False

    @contextmanager
    def guarded(self, buffers: Sequence[Tensor]) -> Iterator[None]:
        """Put running statistics back that a forward pass has made not finite."""
        before = [buffer.clone() for buffer in buffers] if self.is_skipping else []
        yield
        for buffer, saved in zip(buffers, before, strict=False):
            if not is_finite([buffer]):
                buffer.data = saved  # in place it would spoil the graph of this pass


def is_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all numbers are finite; whole numbers always are.

    A sum of numbers of which one is not finite is not finite either, and takes a fraction of the time of looking at
    each; where finite numbers have a sum that overflows, each is looked at.
    """
    unsure = []
    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point() and tensor.numel():
            numbers = tensor.detach()
            if numbers.device.type != "cpu" or not math.isfinite(numbers.sum().item()):
                unsure.append(numbers)
    return not unsure or bool(nn.utils.get_total_norm(unsure, math.inf).isfinite())
