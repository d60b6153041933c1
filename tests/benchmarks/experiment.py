"""The command of an experiment made of arms: run what is missing, write the report and the figure beside the lines."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tests.benchmarks.arms import Arm, Line, Measure, lines_of, run_missing
from tests.benchmarks.methods_results import FOLDER, Results


class Named(Protocol):
    """How large an experiment is; `name` is that of its file of results."""

    @property
    def name(self) -> str: ...


Size = TypeVar("Size", bound=Named)


def run_experiment(
    doc: str | None,
    short_help: str,
    *,
    full: Size,
    short: Size,
    arms: Callable[[Size], Sequence[Arm]],
    measure: Measure,
    report: Callable[[Sequence[Line], Size], str],
    figure: Callable[[Sequence[Line], Size, Path], Any],
) -> tuple[Sequence[Line], Size]:
    """Do what the command line says; return the lines that are there and the size that was chosen."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help=short_help)
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after this time")
    arguments = parser.parse_args()
    size = short if arguments.short else full
    results, planned = Results(FOLDER / f"{size.name}.jsonl", forget_failed=not arguments.table), arms(size)
    if not arguments.table:
        run_missing(planned, results, measure, minutes=arguments.minutes)
    lines = lines_of(planned, results)
    text = report(lines, size)
    print(text)
    if lines:
        (FOLDER / f"{size.name}.md").write_text(text + "\n")
        print(figure(lines, size, FOLDER / f"{size.name}.svg"))
    return lines, size
