"""The table of the methods benchmark, as Markdown, from lines of results and nothing else."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.methods_targets import (
    NOT_JUDGED,
    NOT_WORSE_THAN,
    TARGET_GAPS,
    Interval,
    gain_verdict,
    gap_verdict,
    interval,
    must_beat_shallow,
    paired,
)

Lines = Sequence[Mapping[str, Any]]
Causes = Mapping[str, Mapping[str, str]]
"""Network -> method -> why it misses what is expected of it; written by a person."""

NO_CAUSE = "cause not found yet"
TOO_FEW_SEEDS = "the seeds differ by more than the gain"
HIGHEST, LOWEST = "↑", "↓"
"""Of the rates that were tried."""
FINE = ("", "met", "met within its interval", "better", NOT_JUDGED)
HEADER = (
    "method", "test accuracy, %", "gap to backprop", "target", "gain over shallow", "rate",
    "kB per edge and sample", "samples/s", "cause of a miss, failures",
)  # fmt: skip


@dataclass
class Row:
    """What a method reached on a network. Accuracies and gaps are in points."""

    network: str
    method: str
    accuracy: Interval | None
    gap: Interval | None
    gain: Interval | None
    behind: Interval | None
    """Gap to the method that this one must not be worse than."""
    rates: Mapping[str, float]
    edges: Mapping[str, str]
    """Of each rate: `HIGHEST` or `LOWEST` of those that were tried, both where no other was, else empty."""
    traffic: Mapping[str, float]
    paces: Sequence[float] = ()
    """Samples/s of each run whose pace was taken."""
    shallow_edges: Mapping[str, str] = field(default_factory=dict)
    """As `edges`, of the baseline that the gain is over."""
    longer: Interval | None = None
    """The gap where both have trained for more epochs."""
    failures: list[str] = field(default_factory=list)

    @property
    def target(self) -> float | None:
        """The largest gap that is expected."""
        return TARGET_GAPS.get(self.network, {}).get(self.method)

    @property
    def target_verdict(self) -> str:
        """Whether the gap is met, empty without a target."""
        return "" if self.target is None else gap_verdict(self.gap, self.target)

    @property
    def behind_verdict(self) -> str:
        """Whether it is no worse than the method it is held against, empty without one."""
        other = NOT_WORSE_THAN.get(self.network, {}).get(self.method)
        return "" if other is None else gap_verdict(self.behind, 0.0)

    @property
    def gain_verdict(self) -> str:
        """Whether the shallow baseline is beaten, empty where that is not asked for."""
        return gain_verdict(self.gain) if must_beat_shallow(self.network, self.method) else ""

    @property
    def is_miss(self) -> bool:
        """Whether anything that is expected was not reached."""
        return any(v not in FINE for v in (self.target_verdict, self.behind_verdict, self.gain_verdict))


def rows(lines: Lines, network: str, methods: Iterable[str]) -> list[Row]:
    """Return one row per method, in the order given; gaps are paired by seed."""
    here = [line for line in lines if line["network"] == network]
    accuracies = {method: _accuracies(here, method) for method in {line["method"] for line in here}}
    return [_row(here, network, method, accuracies) for method in methods]


def _row(lines: Lines, network: str, method: str, accuracies: Mapping[str, Mapping[int, float]]) -> Row:
    own = accuracies.get(method, {})
    final = [line for line in lines if line["method"] == method and line["phase"] == "final"]
    timed = [line for line in lines if line["method"] == method and line["phase"] == "throughput"]
    other = NOT_WORSE_THAN.get(network, {}).get(method, "")
    return Row(
        network=network,
        method=method,
        accuracy=interval([own[seed] for seed in sorted(own)]),
        gap=paired(accuracies.get("backprop", {}), own) if method != "backprop" else None,
        gain=paired(own, accuracies.get("shallow", {})) if method != "shallow" else None,
        behind=paired(accuracies.get(other, {}), own),
        rates=final[-1]["rates"] if final else {},
        edges=_edges(lines, method),
        traffic=next(
            (x["bytes_per_edge_and_sample"] for x in [*timed, *final] if "bytes_per_edge_and_sample" in x), {}
        ),
        paces=[line["samples_per_s"] for line in timed if "samples_per_s" in line],
        shallow_edges=_edges(lines, "shallow"),
        longer=paired(*(_accuracies(lines, name, "longer") for name in ("backprop", method))),
        failures=_failures(lines, method),
    )


def _edges(lines: Lines, method: str) -> dict[str, str]:
    """Return where the rates of a method's final runs lie among those that were tried; a search may end at its edge."""
    own = [line for line in lines if line["method"] == method]
    tried = [line["rates"] for line in own if line["phase"] == "tuning"]
    chosen = next((line["rates"] for line in own if line["phase"] == "final"), {}) if tried else {}
    return {
        name: HIGHEST * (rate == max(rates[name] for rates in tried)) + LOWEST * (rate == min(r[name] for r in tried))
        for name, rate in chosen.items()
    }


def _accuracies(lines: Lines, method: str, phase: str = "final") -> dict[int, float]:
    """Return the test accuracy, in points, by seed, of the runs of a phase that have one."""
    found = (x for x in lines if x["method"] == method and x["phase"] == phase and "test_accuracy" in x)
    return {line["seed"]: 100 * line["test_accuracy"] for line in found}


def _failures(lines: Lines, method: str) -> list[str]:
    own = [line for line in lines if line["method"] == method]
    tuning = [line for line in own if line["phase"] == "tuning"]
    failed = [line for line in own if line["status"] != "completed"]
    said = [f"seed {x['seed']}: {x['reason']}" for x in failed if x["phase"] == "final"]
    if tuning and all(line in failed for line in tuning):
        said.append(f"all {len(tuning)} tuning runs failed: {tuning[0]['reason']}")
    if timed := [x for x in failed if x["phase"] == "throughput"]:
        said.append(f"over Ray: {timed[0]['reason']}")
    return said


def markdown(found: Sequence[Row], causes: Causes, refused: Mapping[str, str] | None = None) -> str:
    """Return the table of one network.

    Args:
        found: its rows.
        causes: of misses.
        refused: methods whose config was refused, with the reason.
    """
    table = [f"| {' | '.join(HEADER)} |", "|---|" + "---|" * (len(HEADER) - 1)]
    for row in found:
        reason = (refused or {}).get(row.method)
        table.append(f"| {' | '.join(_cells(row, causes, reason))} |")
    return "\n".join(table)


def _cells(row: Row, causes: Causes, refused: str | None) -> list[str]:
    notes = [f"refused: {refused}"] if refused else list(row.failures)
    if row.is_miss and row.accuracy is not None:
        notes.insert(0, _cause(row, causes))
    return [
        f"`{row.method}`", _shown(row.accuracy), _shown(row.gap, sign=True), _target(row),
        " ".join(filter(None, [_shown(row.gain, sign=True), _gain(row)])),
        " / ".join(f"{rate:g}{row.edges.get(name, '')}" for name, rate in row.rates.items()),
        _traffic(row.traffic), _pace(row.paces),
        "; ".join(notes).replace("|", "\\|"),
    ]  # fmt: skip


def _gain(row: Row) -> str:
    """The verdict; a baseline whose own search has ended at its edge might have done better."""
    beyond = "".join(row.shallow_edges.values())
    doubt = f" (shallow's rate {beyond})" if beyond and row.gain_verdict == "better" else ""
    return _marked(row.gain_verdict) + doubt


def _pace(paces: Sequence[float]) -> str:
    if not paces:
        return ""
    return f"{statistics.median(paces):,.0f}" + (f" (median of {len(paces)})" if len(paces) > 1 else "")


def _cause(row: Row, causes: Causes) -> str:
    """Why something was missed: what a person has written, what more epochs have shown, or that seeds differ more."""
    only_seeds = row.gain_verdict == "not shown" and row.target_verdict in FINE and row.behind_verdict in FINE
    written = causes.get(row.network, {}).get(row.method, TOO_FEW_SEEDS if only_seeds else NO_CAUSE)
    later = "" if row.longer is None else f"; gap {_shown(row.longer, sign=True)} after more epochs"
    return written + later


def _shown(value: Interval | None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    mean = f"{value.mean:+.2f}" if sign else f"{value.mean:.2f}"
    seeds = "" if value.count in (1, 3) else f" ({value.count} seeds)"
    return mean + ("" if value.half is None else f" ± {value.half:.2f}") + seeds


def _target(row: Row) -> str:
    parts = [] if row.target is None else [f"≤ {row.target:g} {_marked(row.target_verdict)}"]
    if row.behind_verdict:
        other = NOT_WORSE_THAN[row.network][row.method]
        parts.append(f"not worse than {other} ({_shown(row.behind, sign=True)}) {_marked(row.behind_verdict)}")
    return ", ".join(parts)


def _marked(verdict: str) -> str:
    return verdict if verdict in FINE else f"**{verdict}**"


def _traffic(edges: Mapping[str, float]) -> str:
    """Mean per kind of edge, with the number of edges: between blocks upwards, downwards, and raw inputs."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for name, count in edges.items():
        if ":raw" in name:
            kinds["raw"].append(count)
        elif ":" in name:
            kinds["down"].append(count)
        elif not name.startswith("source"):
            kinds["up"].append(count)
    return ", ".join(
        f"{kind} {len(counts)} x {statistics.fmean(counts) / 1000:.3g}"
        for kind in ("up", "down", "raw")
        if (counts := kinds.get(kind))
    )
