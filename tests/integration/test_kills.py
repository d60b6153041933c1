"""Processes of a run over Ray die or hang for real; the run goes on, and no weight is different."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from actors.errors import RunError
from orchestrator.cluster.ray_cluster import RayCluster
from tests.conftest import ROOT
from tests.integration.test_ending import DEADLINE_S, read_status, wait_until
from tests.runs import block_weights, run

LONG = {
    "training": {"epochs": 60}, "rule": {"name": "backprop"}, "schedule": {"delay_per_hop": 2},
    "evaluation": {"every_epochs": 0},
}  # fmt: skip
KEEPING = {"checkpoint": {"every_batches": 50}}
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The undisturbed run."""
    return run(tmp_path_factory.mktemp("undisturbed") / "run", **LONG)


def once_at(folder, batch, action):
    """Call `action(status)` when the run has come to a batch; return the thread and what it did."""
    done = []

    def wait_and_act():
        wait_until(lambda: read_status(folder)["batch"] >= batch, f"batch {batch}")
        action(read_status(folder))
        done.append(batch)

    thread = threading.Thread(target=wait_and_act, daemon=True)
    thread.start()
    return thread, done


def kill_block(index, number=signal.SIGKILL):
    return lambda status: os.kill(status["blocks"][index]["pid"], number)


def events(summary, kind):
    return [event for event in summary.events if event["event"] == kind]


def assert_unchanged(got, reference, lost):
    assert {event["actor"] for event in events(got, "lost")} == set(lost)
    assert {event["actor"] for event in events(got, "recovered")} >= set(lost)
    assert block_weights(got) == block_weights(reference)
    assert got.test_accuracy == reference.test_accuracy
    assert not events(got, "imbalance")


@pytest.mark.parametrize(("index", "mode"), [(0, "local"), (2, "local"), (1, "global")])
def test_a_killed_block_changes_no_weight(tmp_path, ray_cluster, reference, index, mode):
    folder = tmp_path / "run"
    thread, done = once_at(folder, 120, kill_block(index))
    got = run(folder, cluster=ray_cluster, **LONG, **KEEPING, recovery={"mode": mode})
    thread.join(DEADLINE_S)
    assert done
    assert_unchanged(got, reference, [f"block{index}"])
    assert got.blocks[index]["restarts"] == 1


def test_a_spare_takes_the_place_of_a_killed_block(tmp_path, ray_session, reference, monkeypatch):
    """A cluster of its own: the suite's keeps processes that would stand in for spares."""
    cluster, folder, taken = RayCluster(), tmp_path / "run", []
    replace = cluster.replace

    def noted(assignments, well=()):
        spares = list(cluster._spare)
        replace(assignments, well)
        taken.extend((name, len(spares), cluster._seats[name].process in spares) for name in assignments)

    monkeypatch.setattr(cluster, "replace", noted)
    thread, done = once_at(folder, 120, kill_block(1))
    got = run(folder, cluster=cluster, **LONG, **KEEPING, recovery={"spares": 1})
    thread.join(DEADLINE_S)
    assert done and taken == [("block1", 1, True)]
    assert_unchanged(got, reference, ["block1"])
    assert ray_session.is_initialized()


def test_two_neighbours_killed_together_change_no_weight(tmp_path, ray_cluster, reference):
    folder = tmp_path / "run"

    def both(status):
        kill_block(0)(status)
        kill_block(1)(status)

    thread, done = once_at(folder, 120, both)
    got = run(folder, cluster=ray_cluster, **LONG, **KEEPING)
    thread.join(DEADLINE_S)
    assert done
    assert_unchanged(got, reference, ["block0", "block1"])


def test_a_block_that_dies_in_the_step_of_the_same_batch_three_times_ends_the_run_with_that_reason(
    tmp_path, ray_cluster
):
    kills = [{"actor": "block1", "at": "step", "batch": 7, "lives": 3}]
    recovery = {"mode": "local", "max_failures": 9}
    with pytest.raises(RunError, match="block1 died during the step of batch 7 in 3 consecutive lives"):
        run(tmp_path / "run", cluster=ray_cluster, **KEEPING, recovery=recovery, faults={"kill": kills})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["batch"] for line in lines if line.get("event") == "lost"] == [7, 7, 7]


def test_a_killed_source_is_replaced_in_place(tmp_path, ray_cluster, reference):
    kills = [{"actor": "source", "at": "snapshot", "batch": 149}]
    got = run(tmp_path / "run", cluster=ray_cluster, **LONG, **KEEPING, faults={"kill": kills})
    assert_unchanged(got, reference, ["source"])
    assert [block["restarts"] for block in got.blocks] == [0, 0, 0]


def test_a_stopped_process_is_waited_for_within_its_deadline(tmp_path, ray_cluster, reference):
    folder, pids = tmp_path / "run", []

    def stop(status):
        pids.append(status["blocks"][1]["pid"])
        os.kill(pids[0], signal.SIGSTOP)
        threading.Timer(2.0, os.kill, (pids[0], signal.SIGCONT)).start()

    thread, done = once_at(folder, 120, stop)
    got = run(folder, cluster=ray_cluster, **LONG, **KEEPING)
    thread.join(DEADLINE_S)
    assert done and block_weights(got) == block_weights(reference)
    assert not events(got, "lost")


def test_a_process_that_hangs_past_its_deadline_is_replaced_and_its_zombie_changes_nothing(
    tmp_path, ray_cluster, reference
):
    folder, pids = tmp_path / "run", []

    def stop(status):
        pids.append(status["blocks"][1]["pid"])
        os.kill(pids[0], signal.SIGSTOP)
        wait_until(lambda: read_status(folder)["blocks"][1]["pid"] != pids[0], "another process for block1")
        with contextlib.suppress(ProcessLookupError):  # it may have been ended for good by then
            os.kill(pids[0], signal.SIGCONT)

    thread, done = once_at(folder, 120, stop)
    got = run(folder, cluster=ray_cluster, **LONG, **KEEPING, recovery={"step_deadline_s": 5})
    thread.join(DEADLINE_S)
    assert done
    assert_unchanged(got, reference, ["block1"])
    assert "has not answered or finished a step" in events(got, "lost")[0]["reason"]


def command(folder, *words):
    arguments = [
        "train", str(ROOT / "configs/digits_cnn.yaml"), f"run_dir={folder}", "training.epochs=4", "network.blocks=2",
        "evaluation.every_epochs=0", "checkpoint.every_batches=20", *words,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return {"args": [sys.executable, "-m", "orchestrator", *arguments], "cwd": ROOT, "env": environment}


def actors_of(driver):
    """Return the processes below a driver that hold or wait for an actor."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
    below = {driver}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return {pid for pid in below if names[pid].startswith("ray::RayHost")}


def test_a_killed_driver_leaves_no_actor_and_the_same_command_goes_on(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen(**command(folder, "recovery.spares=1"), start_new_session=True) as process:
        try:
            wait_until(lambda: any(folder.glob("checkpoints/*/manifest.json")), "a checkpoint")
            wait_until(lambda: read_status(folder)["blocks"], "a status that names the blocks")
            wait_until(lambda: len(actors_of(process.pid)) == 4, "the source's, two blocks' and a spare's process")
            pids = actors_of(process.pid)
            assert pids > {block["pid"] for block in read_status(folder)["blocks"]}
        finally:
            os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all actors' processes to end")
    assert not (folder / "summary.json").exists()
    subprocess.run(**command(folder), check=True, timeout=DEADLINE_S)
    whole = command(tmp_path / "whole", "placement.backend=in_process")
    subprocess.run(**whole, check=True, timeout=DEADLINE_S)
    got, expected = (json.loads((path / "summary.json").read_text()) for path in (folder, tmp_path / "whole"))
    assert got["weights_sha256"] == expected["weights_sha256"]
    assert [event["event"] for event in got["events"]].count("resumed") == 1


def test_a_block_killed_under_replay_loses_little_and_training_goes_on(tmp_path, ray_cluster):
    replay = {"schedule": {"name": "replay"}, "training": {"epochs": 40}, "evaluation": {"every_epochs": 0}}
    folder = tmp_path / "run"
    thread, done = once_at(folder, 120, kill_block(1))
    got = run(folder, cluster=ray_cluster, **replay, **KEEPING)
    thread.join(DEADLINE_S)
    assert done and got.status == "completed"
    assert [event["actor"] for event in events(got, "lost")] == ["block1"]
    since = time.monotonic()
    assert since and not events(got, "imbalance")
    assert all(block["updates"] >= 40 * 11 for block in got.blocks)
