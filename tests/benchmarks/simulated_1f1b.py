"""1F1B of torch.distributed.pipelining on the simulated devices of `simulated_network.py`: one gloo rank per device.

    python -m tests.benchmarks.simulated_1f1b --blocks 8 --compute-ms 50 --message-mb 4 --micro-batches 16 --steps 10

A batch is cut into micro-batches; compute and messages of each are that fraction of a batch's. Its bound is
M / (M + N - 1). Ranks are forked from one process that has imported torch, so that 32 of them start in seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from tests.benchmarks.simulated_network import BATCH_SIZE, CLASSES, devices, units_of

WARM_UP = 2


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """Return a loss that costs nothing to compute."""
    return output.sum()


def train_rank(rank: int, arguments: argparse.Namespace, store: str, results: Any) -> None:
    """Run one device; the last one says how long every step took."""
    torch.set_num_threads(1)
    num, parts = arguments.blocks, arguments.micro_batches
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num)
    try:
        width = units_of(arguments.message_mb * 2**20) * BATCH_SIZE // parts  # one row is a micro-batch
        device = devices(num, arguments.compute_ms / 1000 / parts, width, 1)[rank]
        example = torch.zeros(1, 4 if rank == 0 else width, requires_grad=rank > 0)
        stage = PipelineStage(device, rank, num, torch.device("cpu"), input_args=(example,))
        schedule = Schedule1F1B(stage, n_microbatches=parts, loss_fn=loss_of)
        times = []
        for _ in range(WARM_UP + arguments.steps):
            dist.barrier()
            since = time.perf_counter()
            given = {"target": torch.zeros(parts, CLASSES)} if rank == num - 1 else {}
            schedule.step(*((torch.zeros(parts, 4),) if rank == 0 else ()), **given)
            device.weight.grad = None
            dist.barrier()
            times.append(time.perf_counter() - since)
        if rank == num - 1:
            results.put(times[WARM_UP:])
    finally:
        dist.destroy_process_group()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the median time per step, the efficiency and its bound."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory(prefix="gloo-") as folder:
        given = (arguments, os.path.join(folder, "store"), results)
        ranks = [context.Process(target=train_rank, args=(rank, *given)) for rank in range(arguments.blocks)]
        for process in ranks:
            process.start()
        try:
            times = results.get(timeout=arguments.deadline_s)
        finally:
            for process in ranks:
                process.join(10)
                process.kill()
    parts, num = arguments.micro_batches, arguments.blocks
    step_ms = 1000 * median(times)
    return {"micro_batches": parts, "step_ms": step_ms, "efficiency": arguments.compute_ms / step_ms,
            "bound": parts / (parts + num - 1)}  # fmt: skip


def main() -> None:
    """Print the measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--compute-ms", type=float, default=50.0)
    parser.add_argument("--message-mb", type=float, default=4.0)
    parser.add_argument("--micro-batches", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--deadline-s", type=float, default=150.0)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
