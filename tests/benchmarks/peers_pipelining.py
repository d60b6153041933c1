"""Arm: torch.distributed.pipelining, one stage of the network on each rank, GPipe or 1F1B, over gloo.

Batch norm takes its statistics from a micro-batch. The stages are cut where our blocks are. gloo sends contiguous
tensors only, so images that are kept channel by channel are turned round at the cut, both ways.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional

from actors.datasets.batches import Batch
from tests.benchmarks.peers_work import Work

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class _Turned(Function):
    """The identity, in another memory format; its gradient has the format of the other side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to: torch.memory_format, back: torch.memory_format) -> Tensor:
        ctx.back = back
        return x.contiguous(memory_format=to)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.contiguous(memory_format=ctx.back), None, None


class Turn(nn.Module):
    """Turns images round at a cut: `sent` on the way out of a stage, otherwise on the way in."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__()
        formats = (torch.contiguous_format, torch.channels_last)
        self._formats = formats if sent else formats[::-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, ...], an image in another memory format, anything else as it is."""
        return _Turned.apply(x, *self._formats) if x.dim() == 4 else x


class Pipeline:
    """Trains this rank's stage of the network.

    Args:
        work: what is trained.
        schedule: a name in `SCHEDULES`.
        micro_batches: M, parts of every batch.
    """

    def __init__(self, work: Work, schedule: str, micro_batches: int) -> None:
        self._work = work
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
        self._is_first, self._is_last = rank == 0, rank == num_ranks - 1
        self._module = work.module(rank)
        turned: list[nn.Module] = [self._module]
        if work.is_channels_last:
            turned = [*([] if self._is_first else [Turn(sent=False)]), self._module]
            turned += [] if self._is_last else [Turn(sent=True)]
        stage = PipelineStage(nn.Sequential(*turned), rank, num_ranks, torch.device("cpu"))
        self._schedule = SCHEDULES[schedule](stage, micro_batches, loss_fn=functional.cross_entropy)
        self._optimizer, self._rates = work.optimizer(self._module)

    def step(self, batch: Batch) -> Tensor | None:
        """Train on a batch; its mean loss is known on the last rank."""
        losses: list[Tensor] = []
        arguments = [self._work.inputs(batch)] if self._is_first else []
        target = {"target": batch.labels, "losses": losses} if self._is_last else {}
        self._schedule.step(*arguments, **target, return_outputs=False)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._rates.step()
        return torch.stack(losses).mean().detach() if self._is_last else None

    def state(self) -> dict[str, Tensor]:
        """Return the stage's parameters and buffers."""
        return {name: tensor.clone() for name, tensor in self._module.state_dict().items()}
