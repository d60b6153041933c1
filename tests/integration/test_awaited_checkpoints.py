"""Over Ray, a source that may not send before the next checkpoint does not wait for the next regular report."""

from orchestrator.orchestrator import Orchestrator
from tests.runs import run


def test_a_source_that_waits_for_checkpoints_needs_no_regular_report(tmp_path, monkeypatch, ray_cluster):
    """Once one has shown it waiting, no further one comes for the rest of the run."""
    observe, regular = Orchestrator._observe, []

    def last_one(self, reports, *, at_end=False):
        observe(self, reports, at_end=at_end)
        if self.commits.is_awaited and not at_end:
            regular.append(self.commits.position)
            monkeypatch.setattr("orchestrator.orchestrator.REPORT_EVERY_S", 1e9)

    monkeypatch.setattr(Orchestrator, "_observe", last_one)
    monkeypatch.setattr("orchestrator.commits.AWAITED_S", 1e9)  # a machine that is busy makes no difference
    keeping = {"checkpoint": {"every_batches": 1000}, "recovery": {"mode": "local", "retention_bytes": 200_000}}
    got = run(tmp_path / "run", cluster=ray_cluster, data={"test_size": 32}, **keeping, training={"epochs": 4})
    positions = [event["position"] for event in got.events if event["event"] == "checkpoint"]
    assert got.status == "completed" and len(regular) == 1
    assert len([position for position in positions if position > regular[0]]) > 3
