"""What a monitor of a running job may watch: numbers with names, taken from the actors' reports. Pure.

A cluster exports them; `deploy/monitoring/` shows them. Names are Prometheus names without Ray's prefix `ray_`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.wiring import SOURCE

DESCRIPTIONS: Mapping[str, str] = {
    "unlocked_block_version": "Uses that the block has finished.",
    "unlocked_block_samples_per_s": "Samples that the block has trained on per second, since the report before.",
    "unlocked_block_loss": "The block's newest training loss.",
    "unlocked_block_time_share": "Share of the compute thread's time, from 0 to 1, by what it did.",
    "unlocked_block_restarts": "Lives of the block that were lost in this job.",
    "unlocked_edge_staleness": "Mean staleness, in versions, of what was trained on since the report before.",
    "unlocked_edge_buffered": "Messages that wait on the edge, at its producer and at its consumer.",
    "unlocked_edge_dropped": "Messages that a policy has dropped, since the run began.",
}


@dataclass(frozen=True)
class Measure:
    """One number of one block or edge.

    Args:
        name: a key of `DESCRIPTIONS`.
        value: in the unit that the description says.
        tags: `run`, and `block` or `edge`; of `unlocked_block_time_share` also `share`.
    """

    name: str
    value: float
    tags: Mapping[str, str]


class Measures:
    """Turns reports into measures; remembers the reports before, for what is told per second or since then.

    Args:
        run: name of the run.
        batch_size: samples in a batch.
        clock: seconds.
    """

    def __init__(self, run: str, batch_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.run, self.batch_size, self._clock = run, batch_size, clock
        self._versions: dict[str, tuple[float, int, int]] = {}
        self._stale: dict[str, Counter[int]] = {}

    def of(self, reports: Mapping[str, Mapping[str, Any]], restarts: Mapping[str, int]) -> list[Measure]:
        """Return the measures of every block and edge that the newest reports of all actors tell of."""
        found: list[Measure] = []
        for name, report in reports.items():
            if name != SOURCE:
                found += self._of_block(name, report, restarts.get(name, 0))
            for edge, facts in report["receives"].items():
                waits = reports.get(edge.split("->")[0], {}).get("sends", {}).get(edge, {}).get("unreceived", 0)
                found += self._of_edge(edge, facts, waits)
        return found

    def _of_block(self, name: str, report: Mapping[str, Any], restarts: int) -> Iterator[Measure]:
        tags = {"run": self.run, "block": name}
        yield Measure("unlocked_block_version", report["version"], tags)
        yield Measure("unlocked_block_restarts", restarts, tags)
        if report["loss"] is not None:
            yield Measure("unlocked_block_loss", report["loss"], tags)
        for share, fraction in report["time_fraction"].items():
            yield Measure("unlocked_block_time_share", fraction, {**tags, "share": share})
        now, version, life = self._clock(), report["version"], report["incarnation"]
        since, before, life_before = self._versions.get(name, (now, version, life))
        if life == life_before and now > since:
            rate = (version - before) * self.batch_size / (now - since)
            yield Measure("unlocked_block_samples_per_s", rate, tags)
        self._versions[name] = (now, version, life)

    def _of_edge(self, edge: str, facts: Mapping[str, Any], waiting: int) -> Iterator[Measure]:
        tags = {"run": self.run, "edge": edge}
        yield Measure("unlocked_edge_buffered", facts["arrived"] + facts["held"] + waiting, tags)
        yield Measure("unlocked_edge_dropped", sum(facts["dropped"].values()), tags)
        if not edge.startswith(f"{SOURCE}->"):
            counts = Counter({int(value): count for value, count in facts["staleness"].items()})
            new = counts - self._stale.get(edge, Counter())
            self._stale[edge] = counts
            if new:
                mean = sum(value * count for value, count in new.items()) / new.total()
                yield Measure("unlocked_edge_staleness", mean, tags)
