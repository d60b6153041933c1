"""How a run ends: at its last batch, when it is told to stop, or because an actor died."""

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
from orchestrator import api
from tests.conftest import ROOT
from tests.runs import run

LONG = {"training": {"epochs": 2000}, "network": {"blocks": 2}}
DEADLINE_S = 150


def read_status(folder):
    try:
        return json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {"state": "starting", "blocks": [], "batch": 0}


def wait_until(condition, what):
    until = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < until, f"not within {DEADLINE_S} s: {what}"
        pause.wait(0.05)


def in_thread_once_training(folder, action):
    """Run `action(status)` once the run has trained a few batches; return the thread."""

    def wait_and_act():
        wait_until(lambda: read_status(folder)["batch"] >= 5, "training")
        action(read_status(folder))

    thread = threading.Thread(target=wait_and_act, daemon=True)
    thread.start()
    return thread


def test_a_killed_block_ends_the_run_with_its_name(tmp_path, ray_cluster):
    killed = []

    def kill(status):
        os.kill(status["blocks"][1]["pid"], signal.SIGKILL)
        killed.append(time.monotonic())

    thread = in_thread_once_training(tmp_path / "run", kill)
    with pytest.raises(RunError, match="block1 ended the run: its process died"):
        run(tmp_path / "run", cluster=ray_cluster, recovery={"mode": "none"}, **LONG)
    assert killed and time.monotonic() - killed[0] < 10
    thread.join(DEADLINE_S)
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert "block1" in read_status(tmp_path / "run")["reason"]


def test_the_next_run_works_after_a_death(tmp_path, ray_cluster):
    assert run(tmp_path / "run", cluster=ray_cluster).status == "completed"


@pytest.mark.parametrize("backend", ["in_process", "ray"])
def test_a_block_that_raises_ends_the_run_with_its_own_traceback(tmp_path, ray_cluster, backend):
    cluster = ray_cluster if backend == "ray" else None
    with pytest.raises(RunError) as raised:
        run(tmp_path / "run", cluster=cluster, rule={"name": None, "factory": "tests.failing_rule:Failing"})
    first = str(raised.value).splitlines()[0]
    what = "ArithmeticError: the seventh batch is not to my taste"
    again = "block1 raised at batch 7 in 2 lives, so it always will"
    assert first == f"{'block1 ended the run' if cluster is None else again}: {what}"
    assert "failing_rule.py" in str(raised.value)
    assert read_status(tmp_path / "run")["state"] == "failed"


@pytest.mark.timeout(240)
def test_ctrl_c_writes_a_snapshot_and_leaves_no_process(tmp_path):
    folder = tmp_path / "run"
    arguments = [
        "train", str(ROOT / "configs/digits_cnn.yaml"), f"run_dir={folder}",
        "training.epochs=2000", "network.blocks=2", "evaluation.every_epochs=0",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "orchestrator", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            wait_until(lambda: process.poll() is not None or read_status(folder)["batch"] >= 5, "training")
            pids = [block["pid"] for block in read_status(folder)["blocks"]]
            os.kill(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=DEADLINE_S)
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 0, output
    assert "stopped: test accuracy" in output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped"
    versions = {block["version"] for block in summary["blocks"]}
    assert len(versions) == 1 and versions.pop() >= 5
    assert api.evaluate(folder)["test"]["accuracy"] == summary["test_accuracy"]
    assert len(pids) == 2
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the blocks' processes to end")
