import errno
import json
import os
import socket
import stat
import threading
import time

import pytest
from omegaconf import OmegaConf

from actors.errors import UserError
from orchestrator.catalog import find_catalog
from orchestrator.config import config_from_mapping, load_config, resolved
from orchestrator.lease import SILENT_S, Lease
from orchestrator.run_directory import RunDirectory, write_json

CATALOG = find_catalog()


def config(path, **sections):
    raw = {"run_dir": str(path), "data": {"name": "digits"}, "network": {"name": "mlp", "blocks": 2}}
    return config_from_mapping(raw | sections, CATALOG)


def finish(directory, status="completed"):
    directory.write_summary({"status": status, "epochs": 5})


def refusal(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        RunDirectory.create(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_run_gets_a_private_folder_with_its_config(tmp_path):
    wanted = config(tmp_path / "runs" / "one", optimizer={"name": "adam", "lr": 1e-3})
    directory = RunDirectory.create(wanted)
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert load_config([directory.config_yaml], [], CATALOG) == wanted
    assert OmegaConf.to_container(OmegaConf.load(directory.config_yaml)) == resolved(wanted)
    assert directory.checkpoints.is_dir() and not directory.is_finished


def test_an_empty_folder_is_taken_and_made_private(tmp_path):
    tmp_path.chmod(0o755)
    directory = RunDirectory.create(config(tmp_path))
    assert directory.path == tmp_path and stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_every_run_has_its_own_id_which_opening_does_not_change(tmp_path):
    first, second = (RunDirectory.create(config(tmp_path / name)) for name in "ab")
    assert first.run_id != second.run_id
    assert RunDirectory.open(first.path).run_id == first.run_id


def test_a_relative_run_directory_is_below_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RunDirectory.create(config("runs/x")).path == tmp_path / "runs" / "x"


def test_another_run_is_refused_and_the_differing_keys_are_named(tmp_path):
    finish(RunDirectory.create(config(tmp_path / "run")))
    message = refusal(config(tmp_path / "run", seed=3, data={"name": "digits", "batch_size": 7}))
    assert "holds another run (it differs in data.batch_size, seed)" in message and "--fresh" in message


def test_an_unfinished_run_is_gone_on_with(tmp_path):
    wanted = config(tmp_path / "run")
    directory = RunDirectory.create(wanted)
    again = RunDirectory.create(wanted)
    assert again.run_id == directory.run_id and not again.is_finished
    finish(directory, status="stopped")
    assert not RunDirectory.create(wanted).is_finished


def test_a_finished_run_of_the_same_config_is_returned_untouched(tmp_path):
    wanted = config(tmp_path / "run")
    directory = RunDirectory.create(wanted)
    finish(directory)
    before = {path: path.read_bytes() for path in directory.path.iterdir() if path.is_file()}
    again = RunDirectory.create(config(tmp_path / "run", placement={"backend": "in_process"}))
    assert again.is_finished and again.run_id == directory.run_id
    assert {path: path.read_bytes() for path in before} == before


def test_a_second_holder_of_a_run_is_refused_and_a_later_one_has_a_higher_epoch(tmp_path):
    first, second = Lease(tmp_path / "lease.json"), Lease(tmp_path / "lease.json")
    first.acquire()
    with pytest.raises(UserError, match="is being trained by process"):
        second.acquire()
    first.beat()
    first.release()
    second.acquire()
    assert (first.epoch, second.epoch) == (1, 2)
    second.release()


def held_elsewhere(path, silent_s, **facts):
    facts = {"epoch": 4, "pid": 7, "host": "elsewhere", "beat": time.time() - silent_s, "held": True, **facts}
    path.write_text(json.dumps(facts))


def test_a_holder_on_another_machine_is_gone_after_a_long_silence(tmp_path):
    path = tmp_path / "lease.json"
    held_elsewhere(path, SILENT_S * 2)
    lease = Lease(path, sleep=lambda seconds: pytest.fail("nothing is left to wait for"))
    lease.acquire()
    assert lease.epoch == 5
    lease.release()


@pytest.mark.parametrize(("silent_s", "left_s"), [(SILENT_S / 2, SILENT_S / 2), (-3600.0, SILENT_S)])
def test_a_holder_on_another_machine_that_was_heard_just_now_is_waited_for_until_it_is_silent(
    tmp_path, silent_s, left_s
):
    """Its clock may go ahead of ours."""
    said, slept = [], []
    held_elsewhere(tmp_path / "lease.json", silent_s)
    lease = Lease(tmp_path / "lease.json", said.append, slept.append)
    lease.acquire()
    assert lease.epoch == 5 and sum(slept) == pytest.approx(left_s, abs=1.0)
    assert len(said) == 1 and "was being trained on elsewhere just now; going on in" in said[0]
    lease.release()


def test_a_holder_on_another_machine_that_lives_is_left_alone(tmp_path):
    path, slept = tmp_path / "lease.json", []
    held_elsewhere(path, 1.0)

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            held_elsewhere(path, 0.0)

    with pytest.raises(UserError, match="process 7 on elsewhere"):
        Lease(path, sleep=sleep).acquire()
    assert len(slept) == 3
    held_elsewhere(path, 0.0, held=False)
    lease = Lease(path, sleep=lambda seconds: pytest.fail("it has been given back"))
    lease.acquire()
    lease.release()


def test_a_holder_says_that_it_lives_also_while_it_waits_for_something_else(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.lease.BEAT_EVERY_S", 0.0)
    monkeypatch.setattr("orchestrator.lease.LOOK_S", 0.01)
    lease = Lease(tmp_path / "lease.json")
    lease.acquire()

    def beat():
        return json.loads((tmp_path / "lease.json").read_text())["beat"]

    first, until = beat(), time.monotonic() + 30
    while beat() == first:
        assert time.monotonic() < until, "no beat"
    lease.release()
    assert not json.loads((tmp_path / "lease.json").read_text())["held"]


def test_a_lease_on_a_read_only_disk_is_refused_in_a_sentence(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(UserError, match=r"lease\.json can't be used \(Read-only file system\)"):
        Lease(tmp_path / "lease.json").acquire()


def test_a_holder_that_was_taken_over_learns_of_it_at_once(tmp_path):
    lease = Lease(tmp_path / "lease.json")
    lease.acquire()
    (tmp_path / "lease.json").write_text(json.dumps({"epoch": 9, "pid": 1, "host": "elsewhere"}))
    with pytest.raises(UserError, match="on elsewhere"):
        lease.beat()
    lease.release()
    assert json.loads((tmp_path / "lease.json").read_text())["epoch"] == 9


def test_a_holder_on_another_machine_of_the_same_name_is_waited_for_too(tmp_path):
    slept = []
    held_elsewhere(tmp_path / "lease.json", 1.0, host=socket.gethostname())
    lease = Lease(tmp_path / "lease.json", sleep=slept.append)
    lease.acquire()
    assert lease.epoch == 5 and slept
    lease.release()


def test_of_two_that_take_a_lease_at_once_where_locks_do_not_reach_one_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.lease.fcntl.flock", lambda *args: None)
    path = tmp_path / "lease.json"
    held_elsewhere(path, SILENT_S * 2)
    before = path.read_text()
    first, second = Lease(path), Lease(path)
    first.acquire()
    path.write_text(before)  # the second has read it before the first has written
    second.acquire()
    assert first.epoch == second.epoch == 5
    assert second.is_held and not first.is_held
    second.beat()
    with pytest.raises(UserError, match="is being trained by"):
        first.beat()
    first.release()
    assert second.is_held, "and giving it back takes it from nobody"
    second.release()


def test_fresh_clears_what_a_run_writes_and_nothing_else(tmp_path):
    wanted = config(tmp_path / "run")
    old = RunDirectory.create(wanted)
    finish(old)
    old.write_status({"state": "completed"})
    old.metrics_jsonl.write_text("{}")
    old.tensorboard.mkdir()
    (old.tensorboard / "events").write_text("x")
    (old.checkpoints / "step-3").mkdir()
    (old.path / "notes.txt").write_text("mine")
    run_id = old.run_id
    old.lease_json.write_text('{"epoch": 3}')
    new = RunDirectory.create(config(tmp_path / "run", seed=8), fresh=True)
    assert new.is_finished, "only who holds its lease may delete it"
    new.begin(config(tmp_path / "run", seed=8))
    left = ["checkpoints", "config.yaml", "lease.json", "notes.txt", "run_id"]
    assert sorted(path.name for path in new.path.iterdir()) == left
    assert new.lease_json.read_text() == '{"epoch": 3}'
    assert (new.path / "notes.txt").read_text() == "mine" and not list(new.checkpoints.iterdir())
    assert new.run_id != run_id and not new.is_finished
    assert OmegaConf.load(new.config_yaml).seed == 8


def test_fresh_where_nothing_is_makes_a_new_run(tmp_path):
    wanted = config(tmp_path / "run")
    directory = RunDirectory.create(wanted, fresh=True)
    directory.lease_json.write_text("{}")
    again = RunDirectory.create(wanted, fresh=True)  # it was ended in between
    again.begin(wanted)
    assert again.config_yaml.exists() and stat.S_IMODE(again.path.stat().st_mode) == 0o700


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, fresh):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "status.json").write_text("{}")
    assert "is no run" in refusal(config(tmp_path), fresh=fresh)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["status.json", "thesis.tex"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_file_in_the_way_is_refused(tmp_path, fresh):
    file = tmp_path / "run"
    file.write_text("x")
    assert str(file) in refusal(config(file), fresh=fresh)
    assert str(file) in refusal(config(file / "below"), fresh=fresh)
    assert file.read_text() == "x"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    message = refusal(config(tmp_path / "run"))
    assert "Permission denied" in message and "choose another run_dir" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_that_is_not_ours_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied" in refusal(config(tmp_path / "run"))


@pytest.mark.parametrize("text", ["data: [1\n", "- 1\n", ""])
def test_a_run_whose_config_is_damaged_is_refused(tmp_path, text):
    directory = RunDirectory.create(config(tmp_path / "run"))
    directory.config_yaml.write_text(text)
    assert str(directory.path) in refusal(config(tmp_path / "run"))


def test_opening_what_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no run"):
            RunDirectory.open(path)


def test_a_run_without_a_status_says_so(tmp_path):
    directory = RunDirectory.create(config(tmp_path / "run"))
    with pytest.raises(UserError, match="has no status yet; the run has not started"):
        directory.read_status()
    directory.write_status({"state": "running"})
    assert directory.read_status() == {"state": "running"}


def test_json_is_replaced_whole_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "status.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": [2]})
    assert json.loads(path.read_text()) == {"b": [2]}
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


def test_json_that_cannot_be_written_leaves_the_old_file_as_it_was(tmp_path):
    path = tmp_path / "status.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"b": "x" * 100_000, "c": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_reader_never_sees_half_of_a_file(tmp_path):
    path = tmp_path / "status.json"
    write_json(path, {"values": [0] * 5000})
    done = threading.Event()

    def write():
        for number in range(20):
            write_json(path, {"values": [number] * 5000})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert len(set(json.loads(path.read_text())["values"])) == 1
    writer.join()
