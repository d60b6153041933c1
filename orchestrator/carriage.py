"""What it costs to carry a message from one process to another on this machine: measured, but for the call itself."""

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

CALL_CPU_S = 0.0015
"""Core seconds of one call that hands over a message, in both processes and Ray's daemons."""
REPEATS = 9


def carriages(sizes: Mapping[str, int], *, is_shared: bool = False) -> dict[str, Carriage]:
    """Return what a message of each edge costs, given its bytes; each size is measured once.

    `is_shared`: producer and consumer live in one process, where nothing has to be carried.
    """
    known = {size: carriage(size) for size in set(sizes.values())}
    if is_shared:
        known = {size: replace(found, carry=NOTHING) for size, found in known.items()}
    return {edge: known[size] for edge, size in sizes.items()}


def carriage(num_bytes: int) -> Carriage:
    """Measure a message of so many bytes: laid out, copied once into memory that others see, checked."""
    tensors = {"h": torch.zeros(max(1, num_bytes // 4))} if num_bytes else {}
    message = Message(Kind.ACTIVATION, 0, tensors=tensors)
    packet = pack(message, run="plan", edge="plan")
    buffers = packet.buffers
    send = _seconds(lambda: pack(message, run="plan", edge="plan"))
    receive = _seconds(lambda: unpack(packet, run="plan", edge="plan"))
    copied = _seconds(lambda: [np.copy(buffer) for buffer in buffers]) + CALL_CPU_S
    return Carriage(num_bytes, Work(send, send), Work(copied, copied), Work(receive, receive))


def _seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes, in the middle of several times."""
    taken = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begun)
    return median(taken)
