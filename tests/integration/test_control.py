"""`unlocked control`: a running job changes, and nothing else does."""

import json
import os
import subprocess
import sys

import pytest

from actors.errors import UserError
from actors.storage import open_storage
from orchestrator import control
from orchestrator.checkpoints import Checkpoints
from orchestrator.cli import main
from orchestrator.run_directory import RunDirectory
from orchestrator.step_watch import StepWatch
from tests.conftest import ROOT
from tests.control_job import DEADLINE_S, LONG, Job, events
from tests.runs import assert_balanced, block_weights, run


@pytest.fixture
def job(tmp_path):
    slow = {"slow": [{"block": index, "factor": 4} for index in range(3)]}
    made = Job(tmp_path / "run", faults=slow)
    yield made
    made.thread.join(DEADLINE_S)


def test_a_bound_and_a_capacity_change_while_it_runs_and_no_weight_does(tmp_path, job):
    assert control.ask(job.folder, ["staleness.max=1", "buffers.capacity=9"]).startswith("staleness.max=1")
    summary = job.end()
    assert block_weights(summary) == block_weights(run(tmp_path / "plain", **LONG))
    applied = events(job.folder, "applied")
    assert {event["actor"] for event in applied} == {"source", "block0", "block1", "block2"}
    assert all(event["values"]["bound"] == 1 and event["position"] > 0 for event in applied)
    assert {edge["capacity"] for edge in summary.edges} == {9}
    assert [event["values"] for event in events(job.folder, "control")] == [{"staleness.max": 1, "buffers.capacity": 9}]


def test_the_command_changes_a_job_over_ray_from_another_process(tmp_path, ray_cluster):
    job = Job(tmp_path / "run", cluster=ray_cluster, training={"epochs": 5000})
    command = [sys.executable, "-m", "orchestrator", "control", str(job.folder)]
    words, environment = ["staleness.max=2", "buffers.capacity=16"], {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        job.until(lambda state, batch: batch >= 40)  # more than edges hold: every block has begun
        done = subprocess.run(
            [*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in words), done.stdout
        job.until(lambda state, batch: len(events(job.folder, "applied")) == 4)
    finally:
        control.ask(job.folder, ["stop"])
        summary = job.end()
    assert [event["values"] for event in events(job.folder, "control")[:1]] == [
        {"staleness.max": 2, "buffers.capacity": 16}
    ]
    applied = {event["actor"]: event for event in events(job.folder, "applied")}
    assert applied.keys() == {"source", "block0", "block1", "block2"}
    for event in applied.values():
        assert (event["values"]["bound"], event["values"]["capacity"]) == (2, 16)
        assert 0 < event["position"] <= summary.blocks[0]["version"] + 16
    assert {edge["capacity"] for edge in summary.edges} == {16}


AT_WORK = {
    "pipeline": {},
    "replay": {"schedule": {"name": "replay"}, "buffers": {"on_full": "drop_oldest", "max_reuse": None, "capacity": 4}},
}


@pytest.mark.parametrize("schedule", AT_WORK)
def test_a_paused_run_stands_still_until_it_is_resumed(tmp_path, monkeypatch, schedule):
    """Also blocks that could train on what they hold for ever."""
    counted, restart = [], StepWatch.restart
    monkeypatch.setattr(StepWatch, "restart", lambda watch: (counted.append(watch), restart(watch)))
    slow = {"slow": [{"block": index, "factor": 4} for index in range(3)]}
    job = Job(tmp_path / "run", faults=slow, **AT_WORK[schedule], training={"epochs": 40})
    control.ask(job.folder, ["pause"])
    job.until(lambda state, batch: state == "paused")
    seen = []

    def stands_still(state, batch):
        """For longer than there is between two reports."""
        assert state == "paused"
        seen.append(batch)
        return len(seen) > 40 and len(set(seen[-40:])) == 1

    job.until(stands_still)
    control.ask(job.folder, ["resume"])
    job.until(lambda state, batch: batch > seen[-1])
    control.ask(job.folder, ["stop"])
    assert job.end().status == "stopped"
    assert len(counted) == 2, "its seconds count as nobody's step or silence"


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


def test_a_run_that_is_paused_can_be_stopped(job):
    control.ask(job.folder, ["pause"])
    job.until(lambda state, batch: state == "paused")
    control.ask(job.folder, ["stop"])
    job.until(lambda state, batch: state != "paused")
    assert job.end().status == "stopped"


def test_a_run_that_another_orchestrator_has_taken_over_leaves_its_status_alone(job):
    (job.folder / "lease.json").write_text(json.dumps({"epoch": 9, "pid": 1, "host": "elsewhere"}))
    job.thread.join(DEADLINE_S)
    assert "on elsewhere" in str(job.error)
    assert job.status()["state"] == "running"


def test_a_capacity_may_be_lowered_to_one_while_everything_is_full(tmp_path):
    """What waits in the large buffers and was not acknowledged must not keep the small ones full for ever."""
    full = {"buffers": {"capacity": 8}, "faults": {"slow": [{"block": 2, "factor": 8}]}}
    shrinking = Job(tmp_path / "run", **full)
    control.ask(shrinking.folder, ["buffers.capacity=1"])
    summary = shrinking.end()
    assert block_weights(summary) == block_weights(run(tmp_path / "plain", **LONG))
    assert {edge["capacity"] for edge in summary.edges} == {1}


def test_buffers_that_size_themselves_are_told_their_capacity_only_with_their_mode(tmp_path):
    slow = {"slow": [{"block": index, "factor": 4} for index in range(3)]}
    auto = Job(tmp_path / "run", faults=slow, buffers={"mode": "auto", "budget_bytes": 10**6})
    with pytest.raises(
        UserError, match=r"buffers\.capacity: got 7 while buffers\.mode is 'auto'.*mode=fixed beside it"
    ):
        control.ask(auto.folder, ["buffers.capacity=7"])
    control.ask(auto.folder, ["staleness.max=3", "buffers.budget_bytes=2000000"])
    with pytest.raises(UserError, match=r"buffers\.budget_bytes: got 2000000 with buffers\.mode 'fixed'"):
        control.ask(auto.folder, ["buffers.mode=fixed"])
    control.ask(auto.folder, ["buffers.mode=fixed", "buffers.budget_bytes=null", "buffers.capacity=7"])
    summary = auto.end()
    assert {edge["capacity"] for edge in summary.edges} == {7}
    values = [event["values"] for event in events(auto.folder, "applied") if event["actor"] == "block0"]
    told = [each for each in values if "capacities" not in each]
    assert [(each["bound"], each.get("capacity")) for each in told] == [(3, None), (3, 7)]
    assert block_weights(summary) == block_weights(run(tmp_path / "plain", **LONG))


REFUSED = {
    "staleness.max=-1": "staleness.max: got -1, expected at least 0",
    "staleness.max=two": "staleness.max: got 'two', expected an integer",
    "buffers.capacity=0": "buffers.capacity: got 0, expected at least 1",
    "buffers.capacity=1": "buffers.window: got 2, expected at most buffers.capacity = 1",
    "buffers.mode=automatic": "buffers.mode: got 'automatic', expected 'fixed' or 'auto'",
    "buffers.budget_bytes=1000": "buffers.budget_bytes: got 1000 with buffers.mode 'fixed'",
    "buffers.samples_per_insert=2": "buffers.samples_per_insert: got 2.0 with schedule 'pipeline'",
    "schedule.delay_per_hop=2": "other keys are fixed for a run",
    "buffers.window=1": "other keys are fixed for a run",
    "stalenes.max=2": "control: got 'stalenes.max', expected one of staleness.max,",
    "buffers.capacty=2": "did you mean 'buffers.capacity'?",
    "buffers.order=lifo": "has no replay buffer",
    "nonsense": "expected key=value or one of pause, resume, snapshot, stop",
}


def refused(capsys, *words):
    """Return the one sentence that the command ends with."""
    with pytest.raises(SystemExit) as caught:
        main(["control", *map(str, words)])
    written = capsys.readouterr().err
    assert caught.value.code == 2 and "Traceback" not in written
    (line,) = written.strip().splitlines()
    return line


def test_requests_that_are_refused_leave_the_run_untouched(tmp_path, capsys):
    slow = {"slow": [{"block": index, "factor": 4} for index in range(3)]}
    job = Job(tmp_path / "run", faults=slow, buffers={"window": 2})
    for word, fragment in REFUSED.items():
        assert fragment in refused(capsys, job.folder, word)
    assert "expected key=value" in refused(capsys, job.folder, "pause", "staleness.max=2")
    assert block_weights(job.end()) == block_weights(run(tmp_path / "plain", **LONG))
    assert not events(job.folder, "control") and not events(job.folder, "applied")


LIMITED = {
    "buffers.max_reuse=1": "samples_per_insert 2 above max_reuse 1: uses would never catch up",
    "buffers.on_full=block": "with on_full block and max_reuse 4: a full buffer waits",
    "buffers.tolerance=1": "tolerance 1, expected at least 2",
    "staleness.max=3": "samples_per_insert with a staleness bound: it may forbid the use that pacing waits for",
    "buffers.mode=auto": "got 'auto' with schedule 'replay'",
}


def test_a_running_job_is_not_given_a_limiter_that_cannot_progress(tmp_path, capsys):
    own = {"on_full": "drop_oldest", "max_reuse": 4, "samples_per_insert": 2.0, "capacity": 5}
    slow = {"slow": [{"block": index, "factor": 4} for index in range(3)]}
    job = Job(tmp_path / "run", faults=slow, schedule={"name": "replay"}, buffers=own)
    for word, fragment in LIMITED.items():
        assert fragment in refused(capsys, job.folder, word)
    assert job.end().status == "completed"
    assert not events(job.folder, "control") and not events(job.folder, "applied")


def test_a_replay_buffer_changes_while_it_runs_and_no_block_waits_for_ever(tmp_path):
    """The limiter and the number of uses, up and down, after many uses under other settings."""
    own = {"on_full": "drop_oldest", "max_reuse": 4, "samples_per_insert": 1.0, "capacity": 4}
    slow = {"slow": [{"block": index, "factor": 4} for index in range(3)]}
    job = Job(tmp_path / "run", faults=slow, schedule={"name": "replay"}, buffers=own, training={"epochs": 24})
    changes = (
        ["buffers.samples_per_insert=4"],
        ["buffers.samples_per_insert=null", "buffers.max_reuse=2", "staleness.max=3"],
        ["buffers.max_reuse=1", "buffers.on_full=block", "buffers.capacity=2", "buffers.order=fifo"],
    )
    for words in changes:
        seen = job.status()["batch"]
        job.until(lambda state, batch, seen=seen: batch >= seen + 8)
        control.ask(job.folder, words)
    summary = job.end()
    assert summary.status == "completed"
    assert [block["updates"] for block in summary.blocks] == [264] * 3
    assert_balanced(summary)
    values = [event["values"]["replay"] for event in events(job.folder, "applied") if event["actor"] == "block1"]
    told = [(each["samples_per_insert"], each["max_reuse"], each["on_full"], each["capacity"]) for each in values]
    assert told == [(4.0, 4, "drop_oldest", 4), (None, 2, "drop_oldest", 4), (None, 1, "block", 2)]


@pytest.mark.parametrize("word", ["pause", "staleness.max=2", "nonsense.key=1"])
def test_a_finished_and_an_unknown_run_are_refused_and_nothing_is_written(tmp_path, capsys, word):
    run(tmp_path / "done")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "is completed, expected a running job; nothing was changed" in refused(capsys, tmp_path / "done", word)
    assert "no run (it has no config.yaml)" in refused(capsys, tmp_path / "nowhere", word)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_that_nobody_drives_is_told_so_and_keeps_no_request(tmp_path):
    run(tmp_path / "dead")
    directory = RunDirectory.open(tmp_path / "dead")
    directory.write_status({**directory.read_status(), "state": "running"})
    with pytest.raises(UserError, match=r"nobody answered within 0\.2 s"):
        control.ask(tmp_path / "dead", ["pause"], deadline_s=0.2)
    assert not list(directory.control.iterdir())
