"""Copies between a device and the host that go on while the device computes: pinned memory, and streams beside.

On a device, all blocks of a process compute on its default stream, so that what one has made may be used by the next as
it is; only the copies need to be waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from actors.messages import Message

STAGED_BYTES = 64 * 1024
"""Smaller tensors, as labels are, arrive where they have arrived: they are passed on from there."""


def is_on_device(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any tensor lies elsewhere than in the host's memory."""
    return any(tensor.device.type != "cpu" for tensor in tensors.values())


def begin_leaving(tensors: Mapping[str, Tensor]) -> Callable[[], Mapping[str, Tensor]]:
    """Start to copy tensors to the host, behind the work that makes them; return a call that waits for the copies."""
    on_host = dict(tensors)
    events = []
    for name, tensor in tensors.items():
        if tensor.device.type == "cuda":
            side = _stream_out(tensor.device)
            side.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(side):
                on_host[name] = _pinned_like(tensor).copy_(tensor, non_blocking=True)
                tensor.record_stream(side)  # its memory is not given away before
                events.append(side.record_event())

    def arrived() -> Mapping[str, Tensor]:
        for event in events:
            event.synchronize()
        return on_host

    return arrived


class Entrance:
    """Copies the large tensors of a message to a device; called from a thread beside the one that computes.

    Args:
        device: where the block computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, message: Message) -> Callable[[], Message]:
        """Start to copy; return a call by which the computing thread's stream waits for it."""
        side = _stream_in(self.device)
        moved = dict(message.tensors)
        with torch.cuda.stream(side):
            large = [name for name, tensor in moved.items() if tensor.nbytes > STAGED_BYTES]
            for name in large:
                if moved[name].device.type == "cpu":
                    moved[name] = _pinned_like(moved[name]).copy_(moved[name]).to(self.device, non_blocking=True)
            event = side.record_event()

        def entered() -> Message:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(event)
            for name in large:
                moved[name].record_stream(computing)
            return replace(message, tensors=moved)

        return entered


def entrance_to(device: str) -> Entrance | None:
    """Return what brings messages to a device; None where they need not move."""
    found = torch.device(device)
    return Entrance(found) if found.type == "cuda" else None


def memory_apart(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context for what is written to a device by no stream: memory that queued work may still read is not
    given out in it."""
    return torch.cuda.stream(_stream_without_work(device)) if device.type == "cuda" else nullcontext()


def _pinned_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True)


@lru_cache
def _stream_without_work(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@lru_cache
def _stream_in(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@lru_cache
def _stream_out(device: torch.device) -> torch.cuda.Stream:
    """What leaves waits for the work that makes it; what enters must not wait behind it."""
    return torch.cuda.Stream(device)
