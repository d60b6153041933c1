"""A network of simulated devices: its layers compute nothing, take a known time by sleeping, and give real bytes.

A third of the time is spent in the forward pass, two thirds in the backward pass, whatever is asked of it. Outputs
and gradients are slices of one buffer, as if a device had written them; all that follows is real. Sizes stand
in a file, so that processes that live on can be told new ones: SIMULATED, in the environment, is its path.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from actors.learning_rule import Around, Batch
from actors.needs import Place
from actors.objective import Objective, ObjectiveConfig

CLASSES = 2
BATCH_SIZE = 64
FORWARD_SHARE = 1 / 3
PR_SET_TIMERSLACK = 29

_of_thread = threading.local()


def units_of(message_bytes: float) -> int:
    """Return the fp32 numbers per sample of a message of so many bytes."""
    return max(1, round(message_bytes / 4 / BATCH_SIZE))


def rest(seconds: float) -> None:
    """Sleep without the 50 us by which the kernel may delay a thread's timers: a device would not wait for them."""
    if not getattr(_of_thread, "is_punctual", False):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
        _of_thread.is_punctual = True
    time.sleep(seconds)


class _Device(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, device: Device) -> Tensor:
        ctx.device, ctx.shape = device, x.shape
        rest(device.compute_s * FORWARD_SHARE)
        return device.output(len(x))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        device: Device = ctx.device
        rest(device.compute_s * (1 - FORWARD_SHARE))
        at_input = device.bytes(ctx.shape) if ctx.needs_input_grad[0] else None
        return at_input, torch.zeros(1), None


class Device(nn.Module):
    """One simulated device.

    Args:
        compute_s: seconds of one forward and backward pass.
        units: numbers per sample of its output.
        buffer: what it answers with, at least as large as any input or output.
    """

    def __init__(self, compute_s: float, units: int, buffer: Tensor) -> None:
        super().__init__()
        self.compute_s, self.units = compute_s, units
        self.buffer = buffer
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, units]; without training, at once."""
        if not self.training:
            return self.output(len(x)) + 0 * self.weight
        return _Device.apply(x, self.weight, self)  # type: ignore[return-value]

    def output(self, num_samples: int) -> Tensor:
        """Return the output [num_samples, units]."""
        return self.bytes((num_samples, self.units))

    def bytes(self, shape: tuple[int, ...]) -> Tensor:
        """Return a part of the buffer in some shape."""
        return self.buffer[: torch.Size(shape).numel()].view(shape)


def devices(num: int, compute_s: float, units: int, num_samples: int = BATCH_SIZE) -> list[Device]:
    """Return the devices of a chain; the last one answers with class scores."""
    buffer = torch.full((max(units, CLASSES) * num_samples,), 1e-3)
    return [Device(compute_s, units if i < num - 1 else CLASSES, buffer) for i in range(num)]


def describe(path: Path, blocks: int, compute_ms: float, message_bytes: float) -> None:
    """Say what `build` is to build from now on, in this process and in those that it starts later."""
    path.write_text(f"{blocks} {compute_ms} {units_of(message_bytes)}")
    os.environ["SIMULATED"] = str(path)


def build() -> nn.Sequential:
    """Return the network that was described."""
    layers, compute_ms, units = Path(os.environ["SIMULATED"]).read_text().split()
    chain = devices(int(layers), float(compute_ms) / 1000, int(units))
    return nn.Sequential(OrderedDict((f"device{i}", device) for i, device in enumerate(chain)))


class Costless(Function):
    """A loss whose gradient takes no memory."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.shape = h.shape
        return h.new_ones(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.expand(ctx.shape)


class DeviceLoss(Objective):
    """A block's own loss where its arithmetic is part of the time that the block sleeps."""

    def __init__(self, config: ObjectiveConfig, place: Place, around: Around) -> None:
        super().__init__(config, place, around)

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        """Return 1, with a gradient at h [B, ...] that takes no memory."""
        return Costless.apply(h)  # type: ignore[return-value]

    def evaluate(self, h: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return nothing; simulated devices learn nothing."""
        return {}
