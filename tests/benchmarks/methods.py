"""Every method of configs/methods/ against tuned back-propagation and the shallow baseline.

    python tests/benchmarks/methods.py --plan           what is left to do, and how long it takes
    python tests/benchmarks/methods.py                  tuning and final runs, two at a time; stop and go on at will
    python tests/benchmarks/methods.py --longer         methods that miss their gap, with three times the epochs
    python tests/benchmarks/methods.py --throughput     short runs over Ray for samples/s
    python tests/benchmarks/methods.py --table          the tables; --write-readme puts them into README.md

Each finished run is one line of results/methods.jsonl. A run is not repeated as long as its config is the same;
delete its line, or give --again, to repeat it. `--short` does the same on handwritten digits with one seed, in its
own file.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when a worker process starts
ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.benchmarks.methods_estimate import seconds_left, unit_seconds_left  # noqa: E402
from tests.benchmarks.methods_plan import FULL, SHORT, Job, Lines, MethodsPlan, method_names  # noqa: E402
from tests.benchmarks.methods_report import read_causes, report, write_between_markers  # noqa: E402
from tests.benchmarks.methods_results import FOLDER, Results  # noqa: E402
from tests.benchmarks.methods_runs import commit, one_thread, perform  # noqa: E402

Perform = Callable[[Job], dict[str, Any] | None]
NextJob = Callable[[Lines, Collection[Job]], Job | None]
"""Given the lines that are there and the runs under way, returns the first run that is missing, or None."""


def run_all(
    next_job: NextJob, results: Results, pool: Executor, do: Perform, *, workers: int, minutes: float = float("inf")
) -> None:
    """Let the pool do what is missing, `workers` runs at a time; none is started after `minutes`."""
    until = time.monotonic() + 60 * minutes
    running: dict[Future[dict[str, Any] | None], Job] = {}
    while True:
        while len(running) < workers and time.monotonic() < until:
            job = next_job(results.lines, running.values())
            if job is None:
                break
            running[pool.submit(do, job)] = job
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            running.pop(future)
            keep(results, future.result())


def next_longer(plan: MethodsPlan) -> NextJob:
    """Return what chooses among the longer runs."""
    return lambda lines, running: next(
        (job for job in plan.longer_jobs(lines) if job.key not in lines and job not in running), None
    )


def processes(workers: int) -> ProcessPoolExecutor:
    """Return worker processes of one core each."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread)


def time_all(plan: MethodsPlan, results: Results, minutes: float) -> None:
    """Take the pace of every method over Ray, one run at a time."""
    from orchestrator.cluster.ray_cluster import RayCluster

    until, measured = time.monotonic() + 60 * minutes, commit()
    missing = [job for job in plan.timed_jobs() if job.key not in results.lines]
    if not missing:
        return
    cluster = RayCluster(object_store_bytes=500 * 1024**2, keep=True)
    for job in missing:
        if time.monotonic() > until:
            return
        keep(results, perform(job, measured, cluster))


def keep(results: Results, line: dict[str, Any] | None) -> None:
    """Write down what a run has shown and say so; a stopped run has shown nothing."""
    if line is None:
        return
    results.append(line)
    shown = {key: line[key] for key in ("validation_accuracy", "test_accuracy", "samples_per_s") if key in line}
    rates = " ".join(f"{rate:g}" for rate in line["rates"].values())
    facts = line["reason"] or " ".join(f"{name} {value:.4g}" for name, value in shown.items())
    print(f"{line['network']} {line['method']} {line['phase']} seed {line['seed']} rate {rates}: {facts}", flush=True)


def plan_lines(plan: MethodsPlan, results: Results, workers: int) -> Iterator[str]:
    """Yield what is left to do, method by method."""
    current = plan.current(results.lines)
    for unit in plan.units:
        done = [x for x in current if (x["network"], x["method"]) == (unit.network, unit.method)]
        counts = ", ".join(
            f"{sum(x['phase'] == phase for x in done)} of {count} {phase}"
            for phase, count in plan.all_runs(unit).items()
        )
        left = unit_seconds_left(plan, unit, current)
        yield f"{unit.network} {unit.method}: {unit.refused or counts}; about {left / 60:.1f} min of one core left"
    minutes = seconds_left(plan, results.lines) / 60
    yield f"about {minutes:.0f} min of one core, {minutes / workers:.0f} min with {workers} runs at a time"


def main() -> int:
    """Run the benchmark or show its results; 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="digits, one seed, about 10 minutes")
    parser.add_argument("--plan", action="store_true", help="print what is left to do")
    parser.add_argument("--longer", action="store_true", help="more epochs for the methods that miss their gap")
    parser.add_argument("--throughput", action="store_true", help="short runs over Ray for samples/s")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    parser.add_argument("--write-readme", action="store_true", help="put the tables between README.md's markers")
    parser.add_argument("--methods", default="", help="only these, with commas between")
    parser.add_argument("--networks", default="", help="only these: cnn, mlp")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after this time")
    parser.add_argument("--again", action="store_true", help="repeat runs that raised")
    arguments = parser.parse_args()
    budget = SHORT if arguments.short else FULL
    methods, networks = (list(filter(None, names.split(","))) for names in (arguments.methods, arguments.networks))
    unknown = {*methods} - {*method_names()} | {*networks} - {*budget.networks}
    if unknown:
        print(f"methods: no method or network is called {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    results = Results(FOLDER / f"{budget.name}.jsonl", forget_failed=arguments.again)
    plan = MethodsPlan(budget, methods, networks)
    if arguments.plan:
        print("\n".join(plan_lines(plan, results, arguments.workers)))
        return 0
    if arguments.throughput:
        time_all(plan, results, arguments.minutes)
    elif not (arguments.table or arguments.write_readme):
        do = functools.partial(perform, commit=commit())
        choose = next_longer(plan) if arguments.longer else plan.next_job
        with processes(arguments.workers) as pool:
            run_all(choose, results, pool, do, workers=arguments.workers, minutes=arguments.minutes)
    text = report(plan, results.lines, read_causes())
    print(text)
    if arguments.write_readme:
        try:
            write_between_markers(ROOT / "README.md", text)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # the runs under way were stopped and not written down
