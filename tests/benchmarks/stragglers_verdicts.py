"""What the stragglers benchmark claims, and whether its lines of results show it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.stragglers_plan import BOUND, PACED, PIPELINE, SLOW_BLOCK, UNBOUNDED, Size

Line = Mapping[str, Any]

POINTS_BELOW = 2.0
"""An arm has arrived at this many points of accuracy below the end of the undisturbed pipeline."""
LARGEST_FALL = 0.10
"""Of the other blocks' pace beside a slow one, under replay without a bound."""
LARGEST_LEAD = 0.05
"""By how much the other blocks' pace may exceed the slow one's under a pipeline, beyond what its buffers explain."""


@dataclass(frozen=True)
class Verdict:
    """A claim, whether it holds (None: not measured yet), and the figures."""

    claim: str
    holds: bool | None
    figures: str

    def __str__(self) -> str:
        word = {True: "met", False: "**missed**", None: "not measured yet"}[self.holds]
        return f"{self.claim}: {word}{'; ' if self.figures else ''}{self.figures}"


def find(lines: Sequence[Line], mode: str, capacity: int, factor: float) -> Line | None:
    """Return the line of an arm that was completed, None if there is none."""
    wanted = {"mode": mode, "capacity": capacity, "factor": factor}
    found = [line for line in lines if line["arm"] == wanted and line["status"] == "completed"]
    return found[-1] if found else None


def target(lines: Sequence[Line]) -> float | None:
    """Return the held-out accuracy to arrive at, a fraction; that of an undisturbed pipeline minus 2 points.

    Its weights, and so its accuracy, do not depend on the capacity.
    """
    ends = [line["curve"][-1][2] for line in lines if _is(line, PIPELINE, 1)]
    return ends[0] - POINTS_BELOW / 100 if ends else None


def arrival_s(line: Line, goal: float | None) -> float | None:
    """Return the seconds until the network's held-out accuracy first was at the goal, None if it never was."""
    return next((at_s for at_s, _, accuracy in line["curve"] if goal is not None and accuracy >= goal), None)


def others(line: Line) -> list[float]:
    """Return the updates per second of the blocks that are not slowed."""
    return [block["updates_per_s"] for index, block in enumerate(line["blocks"]) if index != SLOW_BLOCK]


def largest_fall(line: Line, undisturbed: Line) -> float:
    """Return by what part the other blocks' pace fell, that of the block that fell most."""
    return max(1 - now / before for now, before in zip(others(line), others(undisturbed), strict=True))


def verdicts(lines: Sequence[Line], size: Size) -> Iterator[Verdict]:
    """Yield the claims with what was measured."""
    yield _weights(lines)
    yield _pipeline(lines, size)
    yield _unbounded(lines, size)
    yield _bound(lines)


def _weights(lines: Sequence[Line]) -> Verdict:
    claim = "Pipeline: the weights are bit-identical to the undisturbed run's"
    found = [line for line in lines if line["arm"]["mode"] == PIPELINE and line["status"] == "completed"]
    reference = [line["weights_sha256"] for line in found if line["arm"]["factor"] == 1]
    if not reference or len(found) < 2:
        return Verdict(claim, None, "")
    equal = [line for line in found if line["weights_sha256"] == reference[0]]
    return Verdict(claim, len(equal) == len(found), f"{len(equal)} of {len(found)} runs, sha256 {reference[0][:12]}")


def _pipeline(lines: Sequence[Line], size: Size) -> Verdict:
    factor = max(size.factors)
    claim = f"Pipeline at factor {factor:g}: the others fall to the slow block's pace"
    told, holds = [], True
    for capacity in size.capacities:
        line = find(lines, PIPELINE, capacity, factor)
        if line is None:
            return Verdict(claim, None, "")
        own = line["blocks"][SLOW_BLOCK]["updates_per_s"]
        lead = max(others(line)) / own - 1
        explained = size.num_batches / max(1, size.num_batches - capacity - 2) - 1
        holds = holds and lead <= explained + LARGEST_LEAD
        told.append(
            f"capacity {capacity}: {own:.1f} updates/s, the fastest other {lead:+.1%} ({explained:+.1%} for what waits "
            f"in its buffer at the other's end)"
        )
    return Verdict(claim, holds, ", ".join(told))


def _unbounded(lines: Sequence[Line], size: Size) -> Verdict:
    factor = max(size.factors)
    claim = (
        f"Replay without a bound at factor {factor:g}: the others' updates/s fall by less than "
        f"{100 * LARGEST_FALL:.0f} %"
    )
    told, holds = [], True
    for capacity in size.capacities:
        line, undisturbed = (find(lines, UNBOUNDED, capacity, f) for f in (factor, 1))
        if line is None or undisturbed is None:
            return Verdict(claim, None, "")
        fall = largest_fall(line, undisturbed)
        holds = holds and fall < LARGEST_FALL
        told.append(f"capacity {capacity}: {0.0 - fall:+.1%}")
    return Verdict(claim, holds, ", ".join(told))


def _bound(lines: Sequence[Line]) -> Verdict:
    claim = f"Replay with S = {BOUND}: nothing staler is trained on"
    found = [line for line in lines if line["arm"]["mode"] == PACED and line["status"] == "completed"]
    if not found:
        return Verdict(claim, None, "")
    stalest = max(edge["max"] for line in found for edge in line["staleness"].values())
    return Verdict(claim, stalest <= BOUND, f"largest staleness {stalest} in {len(found)} runs")


def _is(line: Line, mode: str, factor: float) -> bool:
    return line["arm"]["mode"] == mode and line["arm"]["factor"] == factor and line["status"] == "completed"
