"""`unlocked control`: a running job changes, and nothing else does."""

import json
import re
import threading
import time

import pytest

from actors.errors import UserError
from actors.storage import open_storage
from orchestrator import control
from orchestrator.checkpoints import Checkpoints
from orchestrator.run_directory import RunDirectory
from tests.runs import block_weights, run

LONG = {"training": {"epochs": 8}, "evaluation": {"every_epochs": 0}, "network": {"blocks": 3}}
DEADLINE_S = 60.0


class Job:
    """A run in a thread of its own, with some computing per step so that there is time to ask."""

    def __init__(self, folder, **sections):
        self.folder, self.summary, self.error = folder, None, None
        self.thread = threading.Thread(target=self._run, args=(sections,))
        self.thread.start()
        self.until(lambda state, batch: state == "running" and batch > 0)

    def _run(self, sections):
        try:
            self.summary = run(self.folder, **{**LONG, **sections})
        except Exception as error:
            self.error = error

    def status(self):
        return RunDirectory.open(self.folder).read_status()

    def until(self, holds):
        """Wait until the status is as asked; an answer that never comes ends at a deadline."""
        over = time.monotonic() + DEADLINE_S
        while True:
            try:
                status = self.status()
            except UserError:
                status = None
            if status and holds(status["state"], status["batch"]):
                return status
            assert self.error is None and time.monotonic() < over, self.error or status
            self.thread.join(0.05)

    def end(self):
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive() and self.error is None, self.error
        return self.summary


@pytest.fixture
def job(tmp_path):
    slow = {"slow": [{"block": index, "factor": 4} for index in range(3)]}
    made = Job(tmp_path / "run", faults=slow)
    yield made
    made.thread.join(DEADLINE_S)


def events(folder, kind):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == kind]


def test_a_bound_and_a_capacity_change_while_it_runs_and_no_weight_does(tmp_path, job):
    assert control.ask(job.folder, ["staleness.max=1", "buffers.capacity=9"]).startswith("staleness.max=1")
    summary = job.end()
    assert block_weights(summary) == block_weights(run(tmp_path / "plain", **LONG))
    applied = events(job.folder, "applied")
    assert {event["actor"] for event in applied} == {"block0", "block1", "block2"}
    assert all(event["values"]["bound"] == 1 and event["position"] > 0 for event in applied)
    assert [event["values"] for event in events(job.folder, "control")] == [{"staleness.max": 1, "buffers.capacity": 9}]


def test_a_paused_run_stands_still_until_it_is_resumed(job):
    control.ask(job.folder, ["pause"])
    job.until(lambda state, batch: state == "paused")
    seen = []
    job.until(lambda state, batch: seen.append(batch) or (len(set(seen[-4:])) == 1 and len(seen) > 40))
    control.ask(job.folder, ["resume"])
    job.until(lambda state, batch: batch > seen[-1])
    assert job.end().status == "completed"


def test_a_snapshot_is_committed_while_it_runs(job):
    control.ask(job.folder, ["snapshot"])
    job.until(lambda state, batch: any(job.folder.glob("checkpoints/*/manifest.json")))
    assert job.status()["state"] == "running"
    assert job.end().status == "completed"


def test_stop_ends_the_run_with_its_last_snapshot(job):
    control.ask(job.folder, ["stop"])
    assert job.end().status == "stopped"
    found = Checkpoints(open_storage(str(job.folder / "checkpoints"))).all()[0]
    assert [checkpoint.is_last for checkpoint in found] == [False, True]  # to go on from, and to evaluate


REFUSED = {
    "staleness.max=-1": "staleness.max: got -1, expected at least 0",
    "schedule.delay_per_hop=2": "other keys are fixed for a run",
    "buffers.order=lifo": "has no replay buffer",
    "nonsense": "expected key=value or one of pause, resume, snapshot, stop",
}


def test_requests_that_are_refused_leave_the_run_untouched(tmp_path, job):
    for word, fragment in REFUSED.items():
        with pytest.raises(UserError, match=re.escape(fragment)):
            control.ask(job.folder, [word])
    assert block_weights(job.end()) == block_weights(run(tmp_path / "plain", **LONG))
    assert not events(job.folder, "control") and not events(job.folder, "applied")


def test_a_finished_and_an_unknown_run_are_refused(tmp_path):
    run(tmp_path / "done")
    with pytest.raises(UserError, match="is completed, expected a running job"):
        control.ask(tmp_path / "done", ["pause"])
    with pytest.raises(UserError, match="no run"):
        control.ask(tmp_path / "nowhere", ["pause"])


def test_a_run_that_nobody_drives_is_told_so_and_keeps_no_request(tmp_path):
    run(tmp_path / "dead")
    directory = RunDirectory.open(tmp_path / "dead")
    directory.write_status({**directory.read_status(), "state": "running"})
    with pytest.raises(UserError, match=r"nobody answered within 0\.2 s"):
        control.ask(tmp_path / "dead", ["pause"], deadline_s=0.2)
    assert not list(directory.control.iterdir())
