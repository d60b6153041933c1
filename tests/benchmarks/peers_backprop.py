"""Arm: back-propagation in one process, as anyone would write it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from actors.datasets.batches import Batch
from tests.benchmarks.peers_work import Work


class Backprop:
    """Trains the whole network in this process."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._network = work.module()
        self._optimizer, self._rates = work.optimizer(self._network)

    def step(self, batch: Batch) -> Tensor:
        """Train on a batch and return its mean loss."""
        loss = self.loss(batch)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._rates.step()
        return loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, with its graph."""
        return functional.cross_entropy(self._network(self._work.inputs(batch)), batch.labels)

    def state(self) -> dict[str, Tensor]:
        """Return the network's parameters and buffers."""
        return {name: tensor.clone() for name, tensor in self._network.state_dict().items()}
