"""What the methods are expected to reach, and how a result is judged. Accuracies and gaps are in points."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

REFERENCES = ("backprop", "shallow", "dgl")
"""Run first: what all others are measured against."""

TARGET_GAPS: Mapping[str, Mapping[str, float]] = {
    "cnn": {
        "dgl": 0.5, "overlapping_local": 0.5, "chunked_local": 0.5, "auglocal": 0.7, "cdni": 4.0,
        "sign_symmetry": 1.0, "features_replay": 0.5, "pipelined_backprop": 0.5,
    },
    "mlp": {"feedback_alignment": 2.0, "direct_feedback_alignment": 2.0},
}  # fmt: skip
"""Network -> method -> the largest gap to back-propagation."""

NOT_WORSE_THAN: Mapping[str, Mapping[str, str]] = {"cnn": {"overlapping_local": "dgl"}}
"""Network -> method -> the method that it must not be worse than."""

BEATS_SHALLOW_ON_MLP = frozenset({"feedback_alignment", "direct_feedback_alignment", "drtp", "dni"})
"""Methods for full layers; all others must beat the shallow baseline on the CNN."""

NOT_JUDGED = "one seed, not judged"


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its 95 % interval: Student's t over `count` seeds; None for a single one."""

    mean: float
    half: float | None
    count: int

    @property
    def low(self) -> float:
        """The lower end."""
        return -math.inf if self.half is None else self.mean - self.half


def interval(values: Sequence[float]) -> Interval | None:
    """Return mean and 95 % interval of at least one value."""
    if not values:
        return None
    count = len(values)
    if count == 1:
        return Interval(values[0], None, 1)
    width = float(stats.t.ppf(0.975, count - 1)) / math.sqrt(count)
    return Interval(statistics.fmean(values), width * statistics.stdev(values), count)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Interval | None:
    """Return the interval of first - second, seed by seed, over the seeds that both have."""
    return interval([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def gap_verdict(gap: Interval | None, target: float) -> str:
    """Judge a gap: it is met unless its interval lies above the target."""
    if gap is None:
        return "missing"
    if gap.mean <= target:
        return "met"
    if gap.half is None:
        return NOT_JUDGED
    return "met within its interval" if gap.low <= target else "missed"


def gain_verdict(gain: Interval | None) -> str:
    """Judge a gain over the shallow baseline: it is shown only if its whole interval lies above 0."""
    if gain is None:
        return "missing"
    if gain.mean <= 0:
        return "not better"
    if gain.half is None:
        return NOT_JUDGED
    return "better" if gain.low > 0 else "not shown"


def must_beat_shallow(network: str, method: str) -> bool:
    """Whether a method is held against the shallow baseline on a network."""
    if method in ("shallow", "backprop"):
        return False
    return network == ("mlp" if method in BEATS_SHALLOW_ON_MLP else "cnn")
