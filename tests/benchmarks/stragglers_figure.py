"""The figure of the stragglers benchmark against the slow-down: pace of the other blocks, different samples that the
last block trains on, time to the target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import draw
from tests.benchmarks.stragglers_plan import MODES, PIPELINE, SLOW_BLOCK, Size
from tests.benchmarks.stragglers_verdicts import Line, arrival_s, find, others, target

LABELS = (
    "mean updates/s of the other blocks,\nundisturbed pipeline = 1",
    "distinct samples/s of the last block",
    "s to the target accuracy\n(no point: not reached)",
)

Points = list[tuple[float, float]]
"""(factor, value)."""


def pace(lines: Sequence[Line], mode: str, capacity: int, factors: Sequence[float]) -> Points:
    """Return the other blocks' mean pace as a part of that in the undisturbed pipeline, for every factor."""
    undisturbed = find(lines, PIPELINE, capacity, 1)
    if undisturbed is None:
        return []
    whole = sum(others(undisturbed))
    found = ((factor, find(lines, mode, capacity, factor)) for factor in factors)
    return [(factor, sum(others(line)) / whole) for factor, line in found if line is not None]


def samples(lines: Sequence[Line], mode: str, capacity: int, factors: Sequence[float]) -> Points:
    """Return the last block's distinct samples per second for every factor."""
    found = ((factor, find(lines, mode, capacity, factor)) for factor in factors)
    return [(factor, line["blocks"][-1]["distinct_samples_per_s"]) for factor, line in found if line is not None]


def arrivals(lines: Sequence[Line], mode: str, capacity: int, factors: Sequence[float]) -> Points:
    """Return the seconds to the target for every factor at which it was reached."""
    goal = target(lines)
    found = ((factor, find(lines, mode, capacity, factor)) for factor in factors)
    times = [(factor, arrival_s(line, goal)) for factor, line in found if line is not None]
    return [(factor, at_s) for factor, at_s in times if at_s is not None]


def figure(lines: Sequence[Line], size: Size, path: Path) -> str:
    """Draw it, a column per capacity; return one sentence about it."""

    def fill(panels: Any) -> None:
        for column, capacity in enumerate(size.capacities):
            for mode, marker in zip(MODES, "os^", strict=True):
                for row, values in enumerate((pace, samples, arrivals)):
                    points = values(lines, mode, capacity, size.factors)
                    panels[row][column].plot(*_xy(points), marker=marker, label=mode)
            curve = [1 + i * (max(size.factors) - 1) / 50 for i in range(51)]
            panels[0][column].plot(curve, [1 / x for x in curve], "k:", label="pace of the slow block")
            panels[0][column].set_title(f"simulated devices, buffers of {capacity}")
            panels[2][column].set_xlabel(f"slow-down of block {SLOW_BLOCK}")
        for row, what in enumerate(LABELS):
            panels[row][0].set_ylabel(what)
        for axes in panels.flat:
            axes.set_ylim(0, None)
        panels[0][0].legend(fontsize=7)

    return draw(path, len(LABELS), len(size.capacities), fill)


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
