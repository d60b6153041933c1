"""Arm: DistributedDataParallel, the batch in equal parts on the ranks; gradients are averaged over gloo.

Batch norm takes its statistics from a rank's own part, and the running ones are those of rank 0: torch's default.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from actors.datasets.batches import Batch
from tests.benchmarks.peers_backprop import Backprop
from tests.benchmarks.peers_work import Work


class DataParallel(Backprop):
    """Trains the whole network on this rank's part of every batch."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._replica = DistributedDataParallel(self._network, gradient_as_bucket_view=True, static_graph=True)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of this rank's part of a batch, with its graph."""
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
        inputs = self._work.inputs(batch).chunk(num_ranks)[rank]
        return functional.cross_entropy(self._replica(inputs), batch.labels.chunk(num_ranks)[rank])

    def state(self) -> dict[str, Tensor]:
        """Return the network's parameters and buffers, which rank 0 gives away."""
        return {} if dist.get_rank() else super().state()
