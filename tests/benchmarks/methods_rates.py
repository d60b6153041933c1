"""How the rates of a method are chosen: a search over steps of half a decade that every method does alike.

A point holds one number of steps per rate, such as (-1,) for the learning rate alone, or (-1, 0.5) for
learning rate and synthesizer rate. The search starts at the rates of the method's config, (0,) or (0, 0),
and goes on from the best point so far. It looks at scores only, so it can be replayed from a file of results.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

Point = tuple[float, ...]
Tried = Mapping[Point, float | None]
"""Validation accuracy by point, in the order in which they were tried; None: the run diverged or failed."""


def rate_at(base: float, steps: float) -> float:
    """Return the rate that many half decades above `base`, with three digits."""
    return float(f"{base * 10 ** (steps / 2):.3g}")


def best_point(tried: Tried) -> Point | None:
    """Return the point with the highest score, of equal ones the last; None if every run failed."""
    found = [point for point, score in tried.items() if score is not None]
    return max(reversed(found), key=lambda point: tried[point] or 0.0, default=None)


def next_point(tried: Tried, num_rates: int) -> Point:
    """Return the point to try next.

    It is the best point with one rate a step lower or higher: the rate that was varied least so far, lower
    before higher. Once these have been tried, the steps are halved. Where every run failed, rates go down.
    """
    if not tried:
        return (0.0,) * num_rates
    centre = best_point(tried)
    if centre is None:
        return tuple(min(point[axis] for point in tried) - 1 for axis in range(num_rates))
    by_size = (_neighbours(centre, tried, num_rates, size) for size in (1.0, 0.5, 0.25, 0.125))
    return next(point for point in chain.from_iterable(by_size) if point not in tried)


def _neighbours(centre: Point, tried: Tried, num_rates: int, size: float) -> list[Point]:
    axes = sorted(range(num_rates), key=lambda axis: len({point[axis] for point in tried}))
    return [_moved(centre, axis, step) for axis in axes for step in (-size, size)]


def _moved(point: Point, axis: int, step: float) -> Point:
    return (*point[:axis], point[axis] + step, *point[axis + 1 :])
