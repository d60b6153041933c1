"""When snapshots become a checkpoint, and what a storage that fails means for the run."""

import json
import shutil
import threading
import time
from types import SimpleNamespace

import pytest

from actors.errors import RunError, UserError
from actors.messages import Flags
from actors.shard import shard_bytes, stage, write_shard
from actors.storage import LocalStorage, RemoteStorage
from orchestrator.checkpoints import Checkpoints
from orchestrator.commits import AWAITED_S, Commits
from orchestrator.lease import Lease

DEADLINE_S = 20.0


class StoreError(Exception):
    """What a remote file system raises: no OSError."""


class Written:
    """Commits of one block's snapshots at an fsspec address that may fail."""

    def __init__(self, address, monkeypatch, *, in_background=False):
        self.storage, self.failing = RemoteStorage(f"memory://{address}"), set()
        self.now = 0.0
        self.fence = lambda: None
        checkpoints = Checkpoints(self.storage, "run", fence=lambda: self.fence())
        self.commits = Commits(checkpoints, 1, 10.0, lambda: self.now, in_background=in_background)
        self.shards, self.positions = {}, {}
        self.waits, self.is_waiting = 0, False
        for name in ("read", "write", "names", "delete"):
            monkeypatch.setattr(self.storage, name, self._failing(name, getattr(self.storage, name)))

    def _failing(self, name, method):
        def call(*args):
            if name in self.failing:
                raise StoreError("quota exceeded\nand more")
            return method(*args)

        return call

    def snapshot(self, position, orders=Flags.NONE, errors=None, **how):
        """A block's snapshot has been written; return the positions that are committed now."""
        failing, self.failing = self.failing, set()
        self.shards[position] = vars(write_shard(self.storage, f"batch-{position:09d}/block0.1", stage({})))
        self.failing = failing
        self.positions[position] = {"batch": position, "orders": int(orders)}
        block = {"name": "block0", "shards": self.shards, "snapshot_errors": errors or {}}
        return [done.position for done in self.commits.note(self.source, [block], **how)]

    @property
    def source(self):
        """The source's report."""
        waits = {"waits_for_checkpoint": self.waits, "is_waiting_for_checkpoint": self.is_waiting}
        return {"positions": self.positions, **waits}

    @property
    def stored(self):
        return [int(name.split("/")[0].removeprefix("batch-")) for name in self.storage.names("manifest.json")]


def test_a_checkpoint_is_awaited_while_the_source_waits_and_for_a_while_after_each_of_its_waits(tmp_path, monkeypatch):
    written = Written(tmp_path.name, monkeypatch)

    def is_awaited_at(now):
        written.now = now
        written.commits.note(written.source, [])
        return written.commits.is_awaited

    assert not is_awaited_at(0.0)
    written.waits = 1  # between two reports
    assert is_awaited_at(10.0) and is_awaited_at(10.0 + AWAITED_S - 0.1) and not is_awaited_at(10.0 + AWAITED_S)
    written.waits, written.is_waiting = 2, True
    assert is_awaited_at(30.0) and is_awaited_at(90.0)
    written.is_waiting = False
    assert is_awaited_at(90.0 + AWAITED_S - 0.1) and not is_awaited_at(90.0 + AWAITED_S)


@pytest.mark.parametrize("failing", ["read", "write"])
def test_a_storage_that_fails_in_its_own_way_leaves_the_checkpoint_before_and_the_next_success_clears_it(
    tmp_path, monkeypatch, failing
):
    written = Written(tmp_path.name, monkeypatch)
    assert written.snapshot(3) == [3]
    written.failing = {failing}
    assert written.snapshot(7) == [] and written.stored == [3] and written.commits.position == 3
    reason = "checkpoint at batch 7 was not written (quota exceeded)"
    assert written.commits.error == reason
    written.failing = set()
    assert written.snapshot(11) == [11] and written.commits.error is None and written.stored == [11]


@pytest.mark.parametrize("is_beside", [False, True])
def test_what_was_written_of_a_checkpoint_that_is_none_does_not_fill_the_disk(tmp_path, monkeypatch, is_beside):
    written = Written(tmp_path.name, monkeypatch, in_background=is_beside)
    assert written.snapshot(3, at_end=True) == [3]
    assert written.snapshot(7, errors={7: "disk full"}, at_end=True) == []
    assert written.storage.folders() == ["batch-000000003"], "though no checkpoint has followed"
    assert written.snapshot(3, errors={3: "said late"}, at_end=True) == [] and written.stored == [3]


@pytest.mark.parametrize("failing", ["names", "delete"])
def test_old_checkpoints_that_cannot_be_deleted_stop_nothing_and_go_later(tmp_path, monkeypatch, failing):
    written = Written(tmp_path.name, monkeypatch)
    assert written.snapshot(3) == [3]
    written.failing = {failing}
    assert written.snapshot(7) == [7] and written.commits.error is None
    assert written.commits.left_over == "old checkpoints can't be deleted (quota exceeded); training goes on"
    written.failing = set()
    assert written.stored == [3, 7]
    assert written.snapshot(11) == [11] and written.commits.left_over is None and written.stored == [11]


def test_once_another_orchestrator_has_taken_over_nothing_is_committed_and_nothing_deleted(tmp_path, monkeypatch):
    written, lease = Written(tmp_path.name, monkeypatch), Lease(tmp_path / "lease.json")
    lease.acquire()
    written.fence = lease.beat
    assert written.snapshot(3) == [3]
    (tmp_path / "lease.json").write_text(json.dumps({"epoch": 2, "pid": 1, "host": "elsewhere", "held": True}))
    with pytest.raises(UserError, match="is being trained by process 1 on elsewhere"):
        written.snapshot(7)
    assert written.stored == [3]
    with pytest.raises(UserError, match="is being trained by"):
        written.commits.checkpoints.prune(1, 3)
    lease.release()


def test_a_run_whose_last_snapshot_is_missing_does_not_end_well_though_an_older_one_is_committed_later(
    tmp_path, monkeypatch
):
    written = Written(tmp_path.name, monkeypatch)
    assert written.snapshot(3) == [3]
    assert written.snapshot(7, errors={9: "disk full"}) == [7]
    with pytest.raises(RunError, match=r"what was learned after batch 7 is not saved: .*batch 9 was not written"):
        written.commits.check_last()
    assert written.snapshot(11, Flags.LAST) == [11]
    written.commits.check_last()


def test_a_slow_storage_is_waited_for_beside_the_loop_and_at_the_end(tmp_path, monkeypatch):
    written, opened = Written(tmp_path.name, monkeypatch, in_background=True), threading.Event()
    read = written.storage.read

    def slow_read(name):
        assert opened.wait(DEADLINE_S)
        return read(name)

    monkeypatch.setattr(written.storage, "read", slow_read)
    assert written.snapshot(3) == [] and written.snapshot(7) == [] and not written.commits.has_news
    opened.set()
    until = time.monotonic() + DEADLINE_S
    while not written.commits.has_news:
        assert time.monotonic() < until
    assert written.commits.position == -1, "nothing changes before it is picked up"
    assert written.snapshot(11, Flags.LAST, at_end=True) == [3, 7, 11]
    assert written.commits.position == 11 and written.stored == [7, 11]


def test_what_is_committed_beside_the_loop_is_fenced_and_its_refusal_ends_the_run(tmp_path, monkeypatch):
    written, lease = Written(tmp_path.name, monkeypatch, in_background=True), Lease(tmp_path / "lease.json")
    lease.acquire()
    written.fence = lease.beat
    lease.release()
    with pytest.raises(UserError, match="has been given back"):
        written.snapshot(3, at_end=True)
    assert written.stored == []


def test_all_return_to_a_checkpoint_that_is_just_being_committed(tmp_path, monkeypatch):
    written = Written(tmp_path.name, monkeypatch, in_background=True)
    told = written.snapshot(3)
    written.commits.forget_uncommitted()
    assert written.commits.position == 3
    assert [*told, *written.snapshot(7, at_end=True)] == [3, 7], "and it is told of"


def test_what_a_local_disk_does_not_delete_is_told_of_and_is_no_checkpoint_any_more(tmp_path, monkeypatch):
    storage, rmtree = LocalStorage(str(tmp_path)), shutil.rmtree
    checkpoints = Checkpoints(storage, "run")
    for position in (3, 7, 11):
        shard = write_shard(storage, f"batch-{position:09d}/block0.1", stage({}))
        checkpoints.commit(position, [shard], {"batch": position, "orders": 0})

    def stuck(path, *args, **kwargs):
        if "000000003" in str(path):
            raise OSError("Device or resource busy")
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", stuck)
    with pytest.raises(OSError, match="busy"):
        checkpoints.prune(1, 11)
    assert storage.folders() == ["batch-000000003", "batch-000000011"], "the others are deleted"
    assert [found.position for found in checkpoints.all()[0]] == [11] and checkpoints.all()[1] == []


def test_errors_of_a_store_s_own_kind_are_one_sentence(tmp_path, monkeypatch):
    storage = RemoteStorage(f"memory://{tmp_path.name}")
    written = write_shard(storage, "batch-000000003/block0.1", stage({}))
    checkpoints = Checkpoints(storage, "run")
    checkpoints.commit(3, [written], {"batch": 3, "orders": 0})

    def refuse(*args, **kwargs):
        raise StoreError("Unable to locate credentials")

    monkeypatch.setattr(storage, "_files", SimpleNamespace(glob=refuse, cat_file=refuse, invalidate_cache=bool))
    with pytest.raises(RunError, match=r"can't be listed \(StoreError: Unable to locate credentials\)"):
        checkpoints.resume_point(is_finished=False)
    with pytest.raises(RunError, match=r"can't be read \(StoreError: Unable to locate credentials\)"):
        shard_bytes(storage, written)
