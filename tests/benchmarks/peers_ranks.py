"""Ranks of a process group over gloo, each a process with one thread."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

NUM_RANKS = 2
DEADLINE_S = 600.0


def on_ranks(work: Callable[..., Any], *arguments: Any, num_ranks: int = NUM_RANKS) -> list[Any]:
    """Call `work(*arguments)` on every rank of a process group and return what each returned.

    Args:
        work: importable, as it is called in fresh processes; each has one thread.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        multiprocessing.spawn(_member, (num_ranks, folder, work, arguments), nprocs=num_ranks)
        return [torch.load(Path(folder, str(rank)), weights_only=False) for rank in range(num_ranks)]


def _member(rank: int, num_ranks: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks,
        timeout=timedelta(seconds=DEADLINE_S),
    )  # fmt: skip
    try:
        torch.save(work(*arguments), Path(folder, str(rank)))
    finally:
        dist.destroy_process_group()
