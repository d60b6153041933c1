"""The disk under a run is full, or read-only, for a while or to its end: training goes on, and nothing is lost."""

import errno
import functools
import io
import json
import os
from pathlib import Path

import pytest

from actors.data_actor import DataActor
from actors.errors import RunError
from actors.storage import LocalStorage
from orchestrator.progress import TrainingProgress
from tests.integration.test_recovery import KEEPING, outcome, undisturbed
from tests.runs import block_weights, run


def test_a_full_disk_stops_no_training_and_the_next_success_clears_it(tmp_path_factory, tmp_path, monkeypatch):
    write, failing = LocalStorage.write, []

    def full(self, name, data, *points):
        if "batch-000000007" in name:
            failing.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, data, *points)

    monkeypatch.setattr(LocalStorage, "write", full)
    got = run(tmp_path / "run", **KEEPING)
    assert failing and outcome(got) == outcome(undisturbed(tmp_path_factory.getbasetemp(), "local"))
    told = [event["reason"] for event in got.events if event["event"] == "checkpoint failed"]
    assert len(told) == 1 and "batch 7" in told[0] and "No space left" in told[0]
    committed = [event["position"] for event in got.events if event["event"] == "checkpoint"]
    assert 3 in committed and 11 in committed and 7 not in committed


class Disk:
    """Refuses to write below a folder from one batch of the source on until another."""

    def __init__(self, monkeypatch, folder, number, since, until):
        self.folder, self.number = str(folder), number
        self.is_full, self.refused = False, set()
        self._open, note = io.open, DataActor._note_position

        def note_position(actor, batch_id, orders):
            self.is_full = since <= batch_id < until
            note(actor, batch_id, orders)

        monkeypatch.setattr(DataActor, "_note_position", note_position)
        monkeypatch.setattr("builtins.open", self.open)
        monkeypatch.setattr("io.open", self.open)
        for name in ("write", "pwrite"):
            monkeypatch.setattr(os, name, functools.partial(self.to_descriptor, getattr(os, name)))

    def check(self, path):
        if self.is_full and str(path).startswith(self.folder):
            self.refused.add(Path(path).name)
            raise OSError(self.number, os.strerror(self.number), str(path))

    def open(self, file, mode="r", *args, **kwargs):
        if mode.strip("bt") != "r":
            self.check(file)
        return self._open(file, mode, *args, **kwargs)

    def to_descriptor(self, write, descriptor, *args):
        self.check(os.readlink(f"/proc/self/fd/{descriptor}"))
        return write(descriptor, *args)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_run_directory_on_a_full_or_read_only_disk_stops_no_training(tmp_path_factory, tmp_path, monkeypatch, number):
    folder = tmp_path / "run"
    disk = Disk(monkeypatch, folder, number, since=7, until=15)
    said = []
    monkeypatch.setattr(TrainingProgress, "say", lambda self, text: said.append(text))
    monkeypatch.setattr("orchestrator.lease.BEAT_EVERY_S", 0.0)
    monkeypatch.setattr("orchestrator.orchestrator.REPORT_EVERY_S", 0.0)
    got = run(folder, **KEEPING)
    assert {"metrics.jsonl", "lease.json"} < disk.refused and any("status.json" in name for name in disk.refused)
    assert outcome(got) == outcome(undisturbed(tmp_path_factory.getbasetemp(), "local"))
    committed = [event["position"] for event in got.events if event["event"] == "checkpoint"]
    assert 3 in committed and 7 not in committed and committed[-1] == 21
    for file in ("metrics.jsonl", "status.json", "lease.json"):
        assert len([line for line in said if line.startswith(f"{file} can't be written")]) == 1, said
        assert f"{file} is written again" in said
    assert len([line for line in said if "training goes on" in line and "checkpoint" in line]) == 1, said
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kinds = ("checkpoint", "checkpoint failed", "not written")
    assert [line["event"] for line in lines if line.get("event") in kinds] == [
        event["event"] for event in got.events if event["event"] in kinds
    ]
    assert not list(folder.glob(".*.partial")) and got.status == "completed"


def test_a_disk_that_is_full_to_the_end_of_a_run_says_what_is_not_saved_and_the_same_command_goes_on(
    tmp_path_factory, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        Disk(patch, folder / "checkpoints", errno.ENOSPC, since=7, until=99)
        with pytest.raises(RunError, match=r"after batch 3 is not saved: checkpoint at batch 21 .*No space left"):
            run(folder, **KEEPING)
    assert not (folder / "summary.json").exists()
    got = run(folder, **KEEPING)
    assert [event["position"] for event in got.events if event["event"] == "resumed"] == [3]
    assert outcome(got) == outcome(undisturbed(tmp_path_factory.getbasetemp(), "local"))


def test_a_disk_that_is_full_while_the_cap_is_reached_lets_the_run_go_on_once_there_is_room(
    tmp_path_factory, tmp_path, monkeypatch
):
    """The source waits for a checkpoint and no batch carries the order any more: another one is let through."""
    write, failing = LocalStorage.write, []

    def full(self, name, data, *points):
        if len(failing) < 9 and name.endswith(".safetensors"):
            failing.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, data, *points)

    monkeypatch.setattr(LocalStorage, "write", full)
    monkeypatch.setattr("orchestrator.commits.RETRY_S", 0.0)
    caps = {"mode": "local", "retention_bytes": 3 * 4 * 2 * 16 * 8 * 64}
    got = run(tmp_path / "run", checkpoint={"every_batches": 1000}, recovery=caps)
    assert len(failing) == 9 and block_weights(got) == block_weights(
        undisturbed(tmp_path_factory.getbasetemp(), "local")
    )
