"""One run of some arms of the comparison, in a process tree of its own; prints one JSON object: arm -> facts.

    python -m tests.benchmarks.peers_run GROUP NETWORK [--steps 20] [--warm-up 5] [--weights FOLDER] [key=value ...]

With `--weights` the arms keep their weights every few steps in files of that folder, for `peers_accuracy.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.benchmarks.peers_arms import GROUPS, MICRO_BATCHES
from tests.benchmarks.peers_backprop import Backprop
from tests.benchmarks.peers_ddp import DataParallel
from tests.benchmarks.peers_pipelining import Pipeline
from tests.benchmarks.peers_ranks import on_ranks
from tests.benchmarks.peers_work import KEEP_EVERY, Trainer, Work, config_of

Facts = dict[str, Any]


def timed(make: Callable[[Work], Trainer], job: argparse.Namespace, num_threads: int = 1) -> Facts:
    """Train and return samples/s over the steps after the warm-up; ranks start and stop the clock together."""
    torch.set_num_threads(num_threads)
    work = Work(config_of(job.network, job.overrides))
    trainer = make(work)
    batches = islice(work.batches(), job.warm_up + job.steps)
    for batch in islice(batches, job.warm_up):
        trainer.step(batch)
    _meet()
    since, cpu_since = time.perf_counter(), time.process_time()
    for step, batch in enumerate(batches, job.warm_up + 1):
        trainer.step(batch)
        if job.weights and step % KEEP_EVERY == 0:
            _keep(trainer, job, step, time.perf_counter() - since)
    _meet()
    elapsed = time.perf_counter() - since
    return {
        "samples_per_s": job.steps * work.config.data.batch_size / elapsed,
        "step_ms": 1000 * elapsed / job.steps,
        "cpu_s_per_step": (time.process_time() - cpu_since) / job.steps,
    }


def _keep(trainer: Trainer, job: argparse.Namespace, step: int, elapsed_s: float) -> None:
    """Write the weights of this process down; the clock of the other ranks goes on, and so does this one's."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.save({"elapsed_s": elapsed_s, "state": trainer.state()}, Path(job.weights, f"{step}-{rank}.pt"))


def _meet() -> None:
    if dist.is_initialized():
        dist.barrier()


def data_parallel(job: argparse.Namespace) -> Facts:
    """One rank of data-parallel training."""
    return timed(DataParallel, job)


def pipelines(job: argparse.Namespace, schedule: str, counts: Sequence[int]) -> dict[int, Facts]:
    """One rank of a pipeline, with each number of micro-batches, one after another."""
    return {m: timed(lambda work, m=m: Pipeline(work, schedule, m), job) for m in counts}


def both(ranks: list[Facts]) -> Facts:
    """Return the facts of an arm of several ranks: rates of the slower one, processor time of all."""
    slower = min(ranks, key=lambda facts: facts["samples_per_s"])
    return slower | {"cpu_s_per_step": sum(facts["cpu_s_per_step"] for facts in ranks)}


def run(group: str, job: argparse.Namespace) -> Iterator[tuple[str, Facts]]:
    """Yield the arms of a group and what each has shown."""
    if group.startswith("unlocked"):
        from tests.benchmarks.peers_unlocked import measure

        yield group, measure(job, in_process=group == "unlocked_one_process")
    elif group.startswith("backprop"):
        yield group, timed(Backprop, job, num_threads=2 if group == "backprop_2_threads" else 1)
    elif group == "ddp_2_ranks":
        yield group, both(on_ranks(data_parallel, job))
    else:
        counts = job.micro_batches or MICRO_BATCHES
        ranks = on_ranks(pipelines, job, group, counts)
        for count in counts:
            yield f"{group}_m{count}", both([facts[count] for facts in ranks])


def main() -> None:
    """Run a group and print what its arms have shown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("network", choices=("cnn", "mlp"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--micro-batches", type=int, nargs="*", default=[])
    parser.add_argument("--weights", default="")
    parser.add_argument("overrides", nargs="*")
    job = parser.parse_intermixed_args()
    print(json.dumps(dict(run(job.group, job))), flush=True)


if __name__ == "__main__":
    main()
