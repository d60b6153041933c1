"""The event file of a run, read back by TensorBoard itself."""

from collections import Counter

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orchestrator.event_file import EventFile
from tests.runs import run


def read(folder):
    found = EventAccumulator(str(folder), size_guidance={"histograms": 0, "scalars": 0})
    found.Reload()
    return found


def counts(histogram):
    """How often each whole number was counted, from buckets of width 1 around it."""
    return {int(limit - 0.5): int(n) for limit, n in zip(histogram.bucket_limit, histogram.bucket, strict=True) if n}


@pytest.mark.parametrize("counted", [{0: 7}, {3: 1}, {0: 2, 1: 5, 4: 1}, {2: 3, 9: 1}])
def test_a_histogram_is_read_back_as_it_was_counted(tmp_path, counted):
    file = EventFile(tmp_path)
    file.histogram("staleness/a->b", counted, 12)
    file.scalar("loss", 0.5, 3)
    file.close()
    found = read(tmp_path)
    (event,) = found.Histograms("staleness/a->b")
    value = event.histogram_value
    assert event.step == 12 and counts(value) == counted
    assert (value.min, value.max, value.num) == (min(counted), max(counted), sum(counted.values()))
    assert value.sum == sum(v * n for v, n in counted.items())
    assert value.sum_squares == sum(v * v * n for v, n in counted.items())
    assert len(value.bucket) == max(counted) - min(counted) + 1
    assert [(scalar.step, scalar.value) for scalar in found.Scalars("loss")] == [(3, 0.5)]


@pytest.mark.parametrize("schedule", ["pipeline", "replay"])
def test_the_staleness_of_every_edge_is_there_over_time_and_adds_up_to_the_summary_s(tmp_path, monkeypatch, schedule):
    monkeypatch.setattr("orchestrator.orchestrator.REPORT_EVERY_S", 0.0)
    monkeypatch.setattr("orchestrator.control.LOOK_EVERY_S", 0.002)
    summary = run(tmp_path / "run", schedule={"name": schedule}, buffers={"capacity": 3})
    found = read(tmp_path / "run" / "tensorboard")
    assert found.Tags()["histograms"] == ["staleness/block0->block1", "staleness/block1->block2"]
    for edge in summary.edges:
        if edge["name"].startswith("source"):
            continue
        events = found.Histograms(f"staleness/{edge['name']}")
        total = Counter()
        for event in events:
            total.update(counts(event.histogram_value))
        assert {str(value): n for value, n in total.items()} == edge["staleness"]["histogram"]
        assert len(events) > 1 and [e.step for e in events] == sorted(e.step for e in events)
        assert max(total) > 0, "stale at all"
