"""The figure of the stragglers benchmark: pace of the others and time to the target, against the slow-down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import draw
from tests.benchmarks.stragglers_plan import MODES, PIPELINE, SLOW_BLOCK, Size
from tests.benchmarks.stragglers_verdicts import Line, arrival_s, find, others, target

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
            upper, lower = panels[0][column], panels[1][column]
            for mode, marker in zip(MODES, "os^", strict=True):
                upper.plot(*_xy(pace(lines, mode, capacity, size.factors)), marker=marker, label=mode)
                lower.plot(*_xy(arrivals(lines, mode, capacity, size.factors)), marker=marker, label=mode)
            slowest = max(size.factors)
            curve = [1 + i * (slowest - 1) / 50 for i in range(51)]
            upper.plot(curve, [1 / x for x in curve], "k:", label="pace of the slow block")
            upper.set(title=f"buffers of {capacity}", ylim=(0, None), ylabel="pace of the other blocks, relative")
            lower.set(xlabel=f"slow-down of block {SLOW_BLOCK}", ylim=(0, None), ylabel="s to the target accuracy")
        panels[0][0].legend(fontsize=7)
        panels[0][0].figure.suptitle("A slow block among four (simulated devices); no point: the target is not reached")

    return draw(path, 2, len(size.capacities), fill)


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
