"""What moving bytes costs at least on this machine: CPU milliseconds per message, both ends together."""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

LEAST_MESSAGES, MOST_BYTES = 20, 2 * 1024**3


def num_messages(size: int) -> int:
    """Return how many messages of a size are sent."""
    return max(LEAST_MESSAGES, min(500, MOST_BYTES // size))


def memcpy_ms(size: int) -> float:
    """Return the CPU milliseconds of one copy."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    return _spent(lambda: [np.copyto(target, source) for _ in range(num_messages(size))]) / num_messages(size)


def pipe_ms(size: int) -> float:
    """Return the CPU milliseconds of a message through a pipe between two processes."""
    context = multiprocessing.get_context("fork")
    reading, writing = context.Pipe(duplex=False)
    message, num = bytes(size), num_messages(size)

    def send() -> None:
        for _ in range(num):
            writing.send_bytes(message)

    def transfer() -> None:
        sender = context.Process(target=send)
        sender.start()
        for _ in range(num):
            reading.recv_bytes()
        sender.join()

    return _spent(transfer) / num


def gloo_ms(size: int) -> float:
    """Return the CPU milliseconds of a send and its receive between two gloo ranks."""
    context = multiprocessing.get_context("fork")

    def exchange(num: int) -> None:
        with tempfile.TemporaryDirectory(prefix="gloo-") as folder:
            ranks = [context.Process(target=_rank, args=(rank, size, num, Path(folder, "store"))) for rank in (0, 1)]
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join()

    few, many = LEAST_MESSAGES, LEAST_MESSAGES + num_messages(size)
    return (_spent(lambda: exchange(many)) - _spent(lambda: exchange(few))) / (many - few)


def floors(size: int) -> dict[str, float]:
    """Return all of them for one size, in CPU milliseconds."""
    return {"memcpy_ms": memcpy_ms(size), "pipe_ms": pipe_ms(size), "gloo_ms": gloo_ms(size)}


def _rank(rank: int, size: int, num: int, store: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    buffer: Any = torch.ones(size, dtype=torch.uint8)
    for _ in range(num):
        if rank == 0:
            dist.send(buffer, 1)
        else:
            dist.recv(buffer, 0)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


def _spent(action: Callable[[], Any]) -> float:
    """Return the CPU milliseconds of this process and of the children that end meanwhile."""
    before = _cpu_s()
    action()
    return 1000 * (_cpu_s() - before)


def _cpu_s() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
