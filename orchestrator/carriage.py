"""What it costs to carry a message from one process to another on this machine: copies as measured, calls as known."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from actors.messages import Kind, Message
from actors.transport.packet import pack, unpack
from orchestrator.chain_profile import NOTHING, Carriage, Work

CALL_CPU_S = {"object_store": 0.003, "socket": 0.0013}
"""Core seconds of one call that hands over a message, in both processes and Ray's daemons, by `placement.same_node`."""
NUM_COPIES = {"object_store": 12, "socket": 6}
"""As many copies from warm memory to warm memory take what a message's bytes cost on their way: theirs is cold.

Both are from `python -m tests.benchmarks.overhead` on 2 cores, less what the blocks themselves compute.
"""
REPEATS = 9


def carriages(
    sizes: Mapping[str, int], *, same_node: str = "object_store", is_shared: bool = False
) -> dict[str, Carriage]:
    """Return what a message of each edge costs, given its bytes; each size is measured once.

    Args:
        sizes: bytes by edge.
        same_node: as `placement.same_node`.
        is_shared: producer and consumer live in one process, where nothing has to be carried.
    """
    known = {size: carriage(size, same_node) for size in set(sizes.values())}
    if is_shared:
        known = {size: replace(found, carry=NOTHING) for size, found in known.items()}
    return {edge: known[size] for edge, size in sizes.items()}


def carriage(num_bytes: int, same_node: str = "object_store") -> Carriage:
    """Measure a message of so many bytes: laid out, copied to where another process sees it, checked."""
    tensors = {"h": torch.zeros(max(1, num_bytes // 4))} if num_bytes else {}
    message = Message(Kind.ACTIVATION, 0, tensors=tensors)
    packet = pack(message, run="plan", edge="plan")
    buffers = packet.buffers
    send = _seconds(lambda: pack(message, run="plan", edge="plan"))
    receive = _seconds(lambda: unpack(packet, run="plan", edge="plan"))
    copied = [np.empty_like(buffer) for buffer in buffers]
    copy = _seconds(lambda: [np.copyto(into, buffer) for into, buffer in zip(copied, buffers, strict=True)])
    carried = CALL_CPU_S[same_node] + NUM_COPIES[same_node] * copy
    return Carriage(num_bytes, Work(send, send), Work(carried, carried), Work(receive, receive))


def _seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes, in the middle of several times."""
    taken = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begun)
    return median(taken)
