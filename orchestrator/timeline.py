"""`timeline.json`: what every actor did when, in Chrome's trace event format, on the orchestrator's clock.

Opens in Perfetto (ui.perfetto.dev) and chrome://tracing: one process per node, one thread per actor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Offset:
    """Seconds to add to an actor's clock to get the orchestrator's; `error_s`: how far off at most, if known."""

    seconds: float
    error_s: float | None


class Clocks:
    """How far each actor's clock is from the orchestrator's.

    Two wall clocks give an estimate as good as their synchronisation. A report was written after it was asked
    for and before it was answered, which bounds the offset; the narrowest of all bounds holds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall_ahead = wall() - clock()
        self._bounds: dict[str, tuple[float, float]] = {}

    def now(self) -> float:
        """Return the orchestrator's clock."""
        return self._clock()

    def note(self, asked_s: float, answered_s: float, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Learn from reports that were asked for and had all come at these times of the orchestrator's clock."""
        for name, report in reports.items():
            reading = report["clock"]["now_s"]
            low, high = self._bounds.get(name, (-math.inf, math.inf))
            low, high = max(low, asked_s - reading), min(high, answered_s - reading)
            # Bounds that contradict each other mean that a clock was set or has drifted: the newest one holds.
            self._bounds[name] = (low, high) if low <= high else (asked_s - reading, answered_s - reading)

    def offset(self, report: Mapping[str, Any]) -> Offset:
        """Return an actor's offset: what the wall clocks say, within the bounds of its reports' round trips."""
        clock = report["clock"]
        estimate = (clock["wall_s"] - clock["now_s"]) - self._wall_ahead
        if report["name"] not in self._bounds:
            return Offset(estimate, None)
        low, high = self._bounds[report["name"]]
        estimate = min(max(estimate, low), high)
        return Offset(estimate, max(high - estimate, estimate - low))


def timeline(facts: Mapping[str, Mapping[str, Any]], clocks: Clocks) -> dict[str, Any]:
    """Return the trace of a run, ready for JSON.

    Args:
        facts: every actor's final facts, in the order in which they are shown.
        clocks: where the actors' clocks stand.
    """
    offsets = {name: clocks.offset(report) for name, report in facts.items()}
    begins = [span[3] + offsets[name].seconds for name, report in facts.items() for span in report["spans"]]
    origin = min(begins, default=0.0)
    nodes = {node: index for index, node in enumerate(dict.fromkeys(report["node"] for report in facts.values()))}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": index, "tid": 0, "args": {"name": f"node {node}"}}
        for node, index in nodes.items()
    ]
    for thread, (name, report) in enumerate(sorted(facts.items(), key=lambda item: item[1].get("index", -1))):
        place = {"pid": nodes[report["node"]], "tid": thread}
        events.append({"ph": "M", "name": "thread_name", **place, "args": {"name": name}})
        events.append({"ph": "M", "name": "thread_sort_index", **place, "args": {"sort_index": thread}})
        events += [_event(span, offsets[name].seconds - origin, place) for span in report["spans"]]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "clock_offset_s": {name: offset.seconds for name, offset in offsets.items()},
            "clock_error_s": {name: offset.error_s for name, offset in offsets.items()},
            "spans_left_out": {name: report["spans_left_out"] for name, report in facts.items()},
        },
    }


def _event(span: tuple[str, str, int, float, float], shift_s: float, place: Mapping[str, int]) -> dict[str, Any]:
    """A complete event; whole nanoseconds, so that neighbours share their border."""
    share, work, batch_id, begin, end = span
    begin_ns, end_ns = round((begin + shift_s) * 1e9), round((end + shift_s) * 1e9)
    return {
        "ph": "X",
        "name": work or share,
        "cat": share,
        "ts": begin_ns / 1000,
        "dur": (end_ns - begin_ns) / 1000,
        **place,
        "args": {"batch": batch_id},
    }
