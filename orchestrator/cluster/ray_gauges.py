"""Exports measures through Ray: each node's agent serves what its processes tell, for Prometheus to scrape."""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Gauge

from orchestrator.measures import DESCRIPTIONS, Measure


class RayGauges:
    """One gauge per name; the process that publishes is the run's driver. Ray sends them on every 10 s."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def publish(self, measures: Iterable[Measure]) -> None:
        """Tell the newest values."""
        for measure in measures:
            gauge = self._gauges.get(measure.name)
            if gauge is None:
                gauge = Gauge(measure.name, DESCRIPTIONS[measure.name], tag_keys=tuple(measure.tags))
                self._gauges[measure.name] = gauge
            gauge.set(measure.value, tags=dict(measure.tags))
