"""What `control` has set outlives a life and a job; a request outlives neither whoever asked nor the job it was for."""

import json
import time
from collections import defaultdict

import pytest

from actors.block_actor import BlockActor
from actors.errors import UserError
from orchestrator import control
from orchestrator.api import resume
from orchestrator.catalog import find_catalog
from orchestrator.cluster.in_process import InProcessCluster
from orchestrator.run_directory import RunDirectory
from tests.control_job import LONG, Job, events
from tests.runs import block_weights, run


@pytest.fixture
def job(tmp_path):
    slow = {"slow": [{"block": index, "factor": 4} for index in range(3)]}
    made = Job(tmp_path / "run", faults=slow)
    yield made
    made.end()


def test_what_changes_while_another_life_is_built_is_known_to_it(tmp_path):
    """It begins with the settings of before, and can't be told until it is there."""

    class Waiting(InProcessCluster):
        """Builds other lives once it is told to."""

        def __init__(self):
            super().__init__()
            self.may_build, self.held = False, {}

        def replace(self, assignments, well=()):
            self.held |= assignments

        def poll(self, wait_s):
            if self.may_build and self.held:
                super().replace(self.held)
                self.held = {}
            return super().poll(wait_s)

    cluster = Waiting()
    own = {"checkpoint": {"every_batches": 4}, "recovery": {"mode": "local"}, "placement": {"backend": "in_process"}}
    faults = {"kill": [{"actor": "block1", "batch": 20}], "slow": [{"block": 2, "factor": 2}]}
    job = Job(tmp_path / "run", cluster=cluster, **own, faults=faults)
    job.until(lambda state, batch: cluster.held)
    try:
        control.ask(job.folder, ["staleness.max=1", "buffers.capacity=9"])
    finally:
        cluster.may_build = True
    summary = job.end()
    assert {edge["capacity"] for edge in summary.edges} == {9}
    applied = {event["actor"]: event["values"]["bound"] for event in events(job.folder, "applied")}
    assert applied == dict.fromkeys(["source", "block0", "block1", "block2"], 1)


def test_a_bound_that_is_lowered_stands_in_the_summary_as_the_loosest_that_held(tmp_path, monkeypatch):
    """And from where it applied on, nothing staler is started once what was made before has been used."""
    started, count = defaultdict(list), BlockActor.count_staleness

    def counting(self, message, edge):
        if self.spec.index > 0 and edge == self.spec.edges.driver:
            staleness = self.inboxes[edge].producer_version - 1 - message.version
            started[self.name].append((self.bound, message.version, max(0, staleness)))
        count(self, message, edge)

    monkeypatch.setattr(BlockActor, "count_staleness", counting)
    slow = {"slow": [{"block": 0, "factor": 2}, {"block": 2, "factor": 6}]}
    job = Job(tmp_path / "run", faults=slow, buffers={"capacity": 8}, staleness={"max": 6}, training={"epochs": 16})
    job.until(lambda state, batch: batch > 30)
    control.ask(job.folder, ["staleness.max=1"])
    summary = job.end()
    assert {edge["staleness"]["bound"] for edge in summary.edges} == {None, 6}
    assert all(edge["staleness"]["max"] <= 6 for edge in summary.edges if edge["staleness"]["bound"])
    for name in ("block1", "block2"):
        under_it = [(version, staleness) for bound, version, staleness in started[name] if bound == 1]
        made_before = under_it[0][0] + 16  # what edges held then
        later = [staleness for version, staleness in under_it if version > made_before]
        assert len(later) > 50 and max(later) <= 1


SET = ["staleness.max=2", "buffers.capacity=9"]


def stopped_after_a_change(folder):
    slow = {"slow": [{"block": index, "factor": 4} for index in range(3)]}
    job = Job(folder, faults=slow, staleness={"max": 5})
    control.ask(folder, SET)
    control.ask(folder, ["stop"])
    assert job.end().status == "stopped"


def told(folder):
    held = RunDirectory.open(folder).config(find_catalog())
    return held.staleness.max, held.buffers.capacity


def test_what_control_has_set_holds_when_the_run_goes_on(tmp_path):
    folder = tmp_path / "run"
    stopped_after_a_change(folder)
    assert told(folder) == (2, 9), "from the moment of the change"
    summary = resume(folder, progress=False)
    assert {edge["capacity"] for edge in summary.edges} == {9} and told(folder) == (2, 9)
    assert all(edge["staleness"]["bound"] in (None, 5) for edge in summary.edges), "both held"
    assert block_weights(summary) == block_weights(run(tmp_path / "plain", **LONG))


def left(folder, request):
    """Leave a request in a run's folder, as a process does that is killed while it waits; return its answer's file."""
    directory = RunDirectory.open(folder)
    directory.control.mkdir(exist_ok=True)
    (directory.control / "1.json").write_text(json.dumps(request))
    return directory.control / "1.answer.json"


def test_a_request_that_an_earlier_job_has_not_answered_is_not_obeyed_by_the_next(tmp_path):
    stopped_after_a_change(tmp_path / "run")
    answer = left(tmp_path / "run", {"action": "stop"})
    assert resume(tmp_path / "run", progress=False).status == "completed"
    assert "ask again" in json.loads(answer.read_text())["refused"]


def test_whoever_gives_up_waiting_takes_the_request_back(tmp_path, monkeypatch):
    run(tmp_path / "dead")
    directory = RunDirectory.open(tmp_path / "dead")
    directory.write_status({**directory.read_status(), "state": "running"})

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        control.ask(tmp_path / "dead", ["stop"])
    assert not list(directory.control.iterdir())


def test_a_job_that_is_starting_says_so_at_once(tmp_path):
    run(tmp_path / "run")
    directory = RunDirectory.open(tmp_path / "run")
    directory.write_status({**directory.read_status(), "state": "starting"})
    with pytest.raises(UserError, match="is starting, expected a running job; ask again once it trains"):
        control.ask(tmp_path / "run", ["pause"])
    assert not directory.control.exists()


def test_an_action_that_there_is_not_is_refused_and_the_run_goes_on(job):
    answer = left(job.folder, {"action": "explode"})
    job.until(lambda state, batch: answer.exists())
    assert "got 'explode', expected one of pause, resume" in json.loads(answer.read_text())["refused"]
    assert job.end().status == "completed"
