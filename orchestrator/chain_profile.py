"""What every actor of a chain was measured to cost: plain values that predictions are made from. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """One piece of work: seconds it lasts, and for how many of them it keeps a processor core busy."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


NOTHING = Work()


@dataclass(frozen=True)
class BlockProfile:
    """One block, as it is and as it was measured on whole batches.

    `works`: one piece of each kind in the block's program: `forward`, `learn`, `feedback`, `late_activation`, `update`.
    `calls`: how often each comes per batch.
    `flops`: floating-point operations of a whole training step, heads included; None: they were not counted.
    `parameter_bytes`: weights and buffers, with those of heads and of the rule; `optimizer_bytes`: its state.
    `activation_bytes`: what one batch's forward passes keep until its credit has been pulled back.
    `open_batches`: batches that wait for late credit at a time, at least one.
    """

    name: str
    layers: tuple[str, ...]
    num_parameters: int
    num_head_parameters: int
    works: Mapping[str, Work]
    calls: Mapping[str, float]
    flops: int | None = None
    parameter_bytes: int = 0
    optimizer_bytes: int = 0
    activation_bytes: int = 0
    open_batches: int = 1

    @property
    def busy_s(self) -> float:
        """Seconds of work per batch."""
        return sum(work.wall_s * self.calls.get(kind, 1.0) for kind, work in self.works.items())

    @property
    def cpu_s(self) -> float:
        """Core seconds per batch."""
        return sum(work.cpu_s * self.calls.get(kind, 1.0) for kind, work in self.works.items())

    @property
    def memory_bytes(self) -> int:
        """Weights, optimizer state and the activations of every open batch; gradients count as much as weights."""
        gradients = 4 * (self.num_parameters + self.num_head_parameters)
        held = self.activation_bytes * self.open_batches
        return self.parameter_bytes + gradients + self.optimizer_bytes + held


@dataclass(frozen=True)
class Carriage:
    """What one message of an edge costs.

    `send`, `receive`: in the computing threads of producer and consumer: laying it out, checking it.
    `carry`: between them, beside both: copies and calls.
    """

    num_bytes: int = 0
    send: Work = NOTHING
    carry: Work = NOTHING
    receive: Work = NOTHING


@dataclass(frozen=True)
class ChainProfile:
    """What the whole chain costs per batch.

    `load`: making a batch ready in the source.
    `edges`: what a message costs, by edge.
    `num_batches`: that were measured, of `batch_size` samples.
    """

    load: Work
    blocks: tuple[BlockProfile, ...]
    edges: Mapping[str, Carriage] = field(default_factory=dict)
    batch_size: int = 0
    num_batches: int = 0
