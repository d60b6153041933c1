"""The report of the methods benchmark: a sentence on how it was made, and one table per network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.methods_plan import Budget, Lines, MethodsPlan
from tests.benchmarks.methods_results import FOLDER
from tests.benchmarks.methods_table import Causes, markdown, rows

START, END = "<!-- methods:start -->", "<!-- methods:end -->"
LEGEND = (
    "± is the half width of a 95 % interval (Student's t over the seeds); gaps and gains are in points of accuracy "
    "and paired by seed. A gap is met unless its whole interval lies above the target; a gain is shown only if its "
    "whole interval lies above 0. A rate with ↑ or ↓ is the highest or lowest that was tried: the search ended there,"
    " and a better one may lie beyond. Traffic is per kind of edge: how many edges, and the mean of each. Samples/s "
    "are from a short run over Ray, all blocks on this machine, or the median of as many as are named; a single one "
    "is noisy. In `greedy_layerwise` every block has its own epochs: a sample counts once, when all blocks have "
    "trained on it, and is sent up again for every block that trains later. After more epochs: {longer} times as many"
    " at the same rates, for methods that miss their gap and for backprop."
)


def report(plan: MethodsPlan, lines: Lines, causes: Causes) -> str:
    """Return Markdown: what was run, one table per network, and how to read it."""
    current = plan.current(lines)
    parts = [_made(plan.budget, current)]
    for network in dict.fromkeys(unit.network for unit in plan.units):
        units = [unit for unit in plan.units if unit.network == network]
        refused = {unit.method: unit.refused for unit in units if unit.refused is not None}
        found = rows(current, network, [unit.method for unit in units])
        parts.append(f"**{network.upper()}** {_trained_on(plan.budget, network)}")
        parts.append(markdown(found, causes, refused))
    return "\n\n".join([*parts, LEGEND.format(longer=plan.budget.longer)])


def _made(budget: Budget, current: list[Mapping[str, Any]]) -> str:
    commits = sorted({line["commit"] for line in current}) or ["none yet"]
    machines = sorted({f"{x['machine']['cores']} cores of {x['machine']['processor']}" for x in current})
    final = sum(line["phase"] == "final" for line in current)
    return (
        f"{budget.data}, batches of {budget.batch_size}, {budget.epochs} epochs, seeds "
        f"{', '.join(map(str, budget.seeds))}, {final} final runs. For every method {budget.tuning_runs} shorter runs "
        f"choose the rates on {budget.validation_samples:,} validation samples; the test data are read once per final "
        f"run. Commit {', '.join(commits)}. {', '.join(machines)}".strip()
    )


def _trained_on(budget: Budget, network: str) -> str:
    own = budget.networks[network]
    return (
        f"(`{own.config}`, {own.final_samples:,} training samples; {own.tuning_samples:,} while the rates are chosen)"
    )


def read_causes(path: Path = FOLDER / "causes.yaml") -> Causes:
    """Return the causes that a person has written down."""
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the two markers of a file.

    Raises:
        ValueError: the file does not hold each marker once, the start before the end.
    """
    whole = path.read_text()
    if whole.count(START) != 1 or whole.count(END) != 1 or whole.index(START) > whole.index(END):
        raise ValueError(
            f"{path.name}: expected {START} and, after it, {END}, each once; add them where the table goes"
        )
    before, rest = whole.split(START)
    path.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}")
