"""The table of the stragglers benchmark, as Markdown, from lines of results and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks.arms import origin
from tests.benchmarks.stragglers_plan import BLOCKS, MODES, PAD, PIPELINE, SEED, SLOW_BLOCK, Size
from tests.benchmarks.stragglers_verdicts import POINTS_BELOW, Line, arrival_s, find, target, verdicts

HEADER = (
    "schedule", "capacity", "factor", "updates/s of blocks 0 to 3", "distinct samples/s of blocks 0 to 3",
    "s to target", "s in all", "held-out accuracy, %", "test accuracy, %", "staleness per edge: mean (max)",
    "dropped per edge",
)  # fmt: skip


def report(lines: Sequence[Line], size: Size) -> str:
    """Return what was run, the verdicts, and one row per arm; an arm without a line has an empty row."""
    goal = target(lines)
    table = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for mode in MODES:
        for capacity in size.capacities:
            table += [_row(lines, mode, capacity, factor, goal) for factor in size.factors]
    said = "\n".join(f"- {verdict}" for verdict in verdicts(lines, size))
    return "\n\n".join([_made(lines, size, goal), said, "\n".join(table), _failures(lines)]).strip()


def _made(lines: Sequence[Line], size: Size, goal: float | None) -> str:
    where = "not known yet" if goal is None else f"{100 * goal:.1f} %"
    return (
        f"{size.data['name']}, {BLOCKS} blocks of {size.width} units, {size.num_batches} updates each with batches of "
        f"{size.batch_size}, seed {SEED}; simulated devices: every block's computing is padded to {PAD} times its "
        f"length{_compute(lines)}, block {SLOW_BLOCK}'s to that times the factor. Target: the held-out accuracy of "
        f"the undisturbed pipeline minus {POINTS_BELOW:g} points, {where}, looked at every {size.evaluate_every} "
        f"batches. {origin(lines)}"
    )


def _compute(lines: Sequence[Line]) -> str:
    found = [line for line in lines if line["arm"]["mode"] == PIPELINE and line["arm"]["factor"] == 1]
    spent = [1000 * block["compute_s"] / PAD for line in found for block in line.get("blocks", ())]
    return f" (of {min(spent):.1f} to {max(spent):.1f} ms, undisturbed)" if spent else ""


def _row(lines: Sequence[Line], mode: str, capacity: int, factor: float, goal: float | None) -> str:
    line = find(lines, mode, capacity, factor)
    cells = [mode, str(capacity), f"{factor:g}", *(_cells(line, goal) if line else [""] * (len(HEADER) - 3))]
    return f"| {' | '.join(cells)} |"


def _cells(line: Line, goal: float | None) -> list[str]:
    arrived, edges = arrival_s(line, goal), line["staleness"].values()
    return [
        " ".join(f"{block['updates_per_s']:.1f}" for block in line["blocks"]),
        " ".join(f"{block['distinct_samples_per_s']:,.0f}" for block in line["blocks"]),
        "not reached" if arrived is None else f"{arrived:.1f}",
        f"{line['wall_s']:.1f}",
        f"{100 * line['curve'][-1][2]:.1f}",
        f"{100 * line['test_accuracy']:.1f}",
        ", ".join(_staleness(edge) for edge in edges),
        " ".join(str(edge["dropped"]) for edge in edges),
    ]


def _staleness(edge: Mapping[str, Any]) -> str:
    return f"{edge['mean']:.1f} ({edge['max']})"


def _failures(lines: Sequence[Line]) -> str:
    failed = [line for line in lines if line["status"] != "completed"]
    return "\n".join(f"- {line['arm']}: {line['reason']}" for line in failed)
