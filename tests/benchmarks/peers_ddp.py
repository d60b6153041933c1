"""Arm: DistributedDataParallel, the batch in equal parts on the ranks; gradients are averaged over gloo.

Batch norm takes its statistics from a rank's own part, and the running ones are those of rank 0: torch's default.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from actors.datasets.batches import Batch
from tests.benchmarks.peers_work import Work


class DataParallel:
    """Trains the whole network on this rank's part of every batch."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._network = work.module()
        self._replica = DistributedDataParallel(self._network, gradient_as_bucket_view=True, static_graph=True)
        self._optimizer, self._rates = work.optimizer(self._network)

    def step(self, batch: Batch) -> Tensor:
        """Train on a batch and return the mean loss of this rank's part."""
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
        inputs = self._work.inputs(batch).chunk(num_ranks)[rank]
        loss = functional.cross_entropy(self._replica(inputs), batch.labels.chunk(num_ranks)[rank])
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._rates.step()
        return loss.detach()

    def state(self) -> dict[str, Tensor]:
        """Return the network's parameters and buffers, which rank 0 gives away."""
        if dist.get_rank():
            return {}
        return {name: tensor.clone() for name, tensor in self._network.state_dict().items()}
