"""The timeline of a simulation, as `timeline.json` of a run: one thread per actor, labelled as simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actors.trace import Span
from orchestrator.timeline import Clocks, timeline
from orchestrator.wiring import SOURCE


def timeline_of(spans: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """Return a Chrome trace of what simulated actors did when."""
    facts = {
        name: {
            "name": name, "node": "(simulated)", "index": -1 if name == SOURCE else index, "spans": list(kept),
            "spans_left_out": 0, "clock": {"now_s": 0.0, "wall_s": 0.0},
        }
        for index, (name, kept) in enumerate(spans.items())
    }  # fmt: skip
    trace = timeline(facts, Clocks(clock=lambda: 0.0, wall=lambda: 0.0))
    trace["otherData"]["simulated"] = True
    return trace
