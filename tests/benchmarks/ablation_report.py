"""Table and figure of the staleness ablation, from lines of results and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.ablation_plan import BLOCKS, DGL, JITTER, METHODS, PAD, Size
from tests.benchmarks.arms import Line, origin
from tests.benchmarks.figures import draw
from tests.benchmarks.methods_targets import Interval, interval

HEADER = (
    "method", "setting", "test accuracy, %", "distinct samples/s of the last block", "updates/s of the last block",
    "staleness, mean (max)", "failures",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What a method reached with a setting, over the seeds; accuracies in points, paces are medians."""

    method: str
    value: float
    accuracy: Interval | None
    samples_per_s: float | None
    updates_per_s: float | None
    staleness: tuple[float, int] | None
    failures: tuple[str, ...]

    @property
    def setting(self) -> str:
        """The setting as it is called."""
        return f"{'S' if self.method == DGL else 's'} = {self.value:g}"


def rows(lines: Sequence[Line], size: Size) -> list[Row]:
    """Return one row per method and setting, in the order of the plan."""
    return [_row(lines, method, value) for method in METHODS for value in size.settings(method)]


def _row(lines: Sequence[Line], method: str, value: float) -> Row:
    own = [line for line in lines if line["arm"]["method"] == method and line["arm"]["value"] == value]
    done = [line for line in own if line["status"] == "completed"]
    last = [line["blocks"][-1] for line in done]
    edges = [edge for line in done for edge in line["staleness"].values()]
    return Row(
        method,
        value,
        interval([100 * line["test_accuracy"] for line in done]),
        statistics.median(block["distinct_samples_per_s"] for block in last) if last else None,
        statistics.median(block["updates_per_s"] for block in last) if last else None,
        (statistics.fmean(edge["mean"] for edge in edges), max(edge["max"] for edge in edges)) if edges else None,
        tuple(f"seed {line['arm']['seed']}: {line['reason']}" for line in own if line["status"] != "completed"),
    )


def report(lines: Sequence[Line], size: Size) -> str:
    """Return what was run, and the table."""
    table = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    table += [f"| {' | '.join(_cells(row))} |" for row in rows(lines, size)]
    made = (
        f"{size.data['name']}, {BLOCKS} blocks of {size.width} units, {size.data['limit']:,} training samples, "
        f"{size.epochs} epochs, batches of {size.batch_size}, seeds {', '.join(map(str, size.seeds))}; simulated "
        f"devices: computing padded to {PAD} times its length, lognormal step lengths of spread {JITTER:g}. S bounds "
        f"the staleness of activations (`staleness.max`), s delays feedback (`schedule.delay_per_hop`). ± is the half "
        f"width of a 95 % interval over the seeds. {origin(lines)}"
    )
    return f"{made}\n\n" + "\n".join(table)


def _cells(row: Row) -> list[str]:
    stale = "" if row.staleness is None else f"{row.staleness[0]:.1f} ({row.staleness[1]})"
    return [
        row.method, row.setting, _accuracy(row.accuracy), _number(row.samples_per_s, ",.0f"),
        _number(row.updates_per_s, ".1f"), stale, "; ".join(row.failures),
    ]  # fmt: skip


def _accuracy(found: Interval | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:.1f}" if found.half is None else f"{found.mean:.1f} ± {found.half:.1f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def points(lines: Sequence[Line], size: Size) -> Mapping[str, list[tuple[float, float, str]]]:
    """Return for each method its points: distinct samples per second, accuracy in points, setting."""
    found: dict[str, list[tuple[float, float, str]]] = {method: [] for method in METHODS}
    for row in rows(lines, size):
        if row.accuracy is not None and row.samples_per_s is not None:
            found[row.method].append((row.samples_per_s, row.accuracy.mean, row.setting))
    return found


def figure(lines: Sequence[Line], size: Size, path: Path) -> str:
    """Draw accuracy against throughput; return one sentence about it."""

    def fill(panels: Any) -> None:
        axes = panels[0][0]
        for (method, own), marker in zip(points(lines, size).items(), "os^", strict=True):
            axes.plot([x for x, _, _ in own], [y for _, y, _ in own], marker=marker, label=method)
            for x, y, setting in own:
                axes.annotate(setting, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
        axes.set(
            title="Staleness: accuracy against throughput (simulated devices)",
            xlabel="distinct samples/s of the last block", ylabel="test accuracy, %",
        )  # fmt: skip
        axes.legend(fontsize=8)

    return draw(path, 1, 1, fill, panel=(7.0, 4.6))
