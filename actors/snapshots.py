"""Writes an actor's snapshots: copied at their position, written in the background.

A write that fails leaves the checkpoint before in place; the next snapshot tries again.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from actors.errors import RunError
from actors.fail_points import FailPoints
from actors.shard import ShardFile, Staged, stage, write_shard
from actors.storage import Storage

LONGEST_QUEUE = 2
"""Snapshots that may wait to be written; a further one is left out, so that memory stays bounded."""
MOST_KEPT = 64
"""Positions whose files are remembered."""


class Snapshots:
    """The snapshots of one actor.

    Args:
        storage: where they are written.
        suffix: end of each file's name, which no other life of the actor has.
        name: of the actor.
        points: where this process is to die, for tests.
        in_background: whether a thread of its own writes; else `take` does.
    """

    def __init__(self, storage: Storage, name: str, suffix: str, points: FailPoints, *, in_background: bool) -> None:
        self.storage, self.name, self.suffix, self.points = storage, name, suffix, points
        self.files: dict[int, ShardFile] = {}
        """By position, of snapshots that have been written."""
        self.errors: dict[int, str] = {}
        """By position, why one could not be written."""
        self.num_done = 0
        """Written or failed so far."""
        self._waiting: deque[tuple[int, Staged]] = deque()
        self._changed = threading.Condition()
        self._is_writing = False
        self._in_background = in_background

    def take(self, position: int, state: Any, *, is_last: bool = False) -> None:
        """Copy a state and have it written; waits for no disk.

        Args:
            position: of the state.
            state: of the actor.
            is_last: training ends with it, so that it is never left out: at most one more copy is kept.
        """
        self.points.reach("snapshot", position)
        if len(self._waiting) >= LONGEST_QUEUE and not is_last:
            self._note(self.errors, position, "the snapshots before it are still being written")
            return
        staged = stage(state)
        if not self._in_background:
            self._write(position, staged)
            return
        with self._changed:
            self._waiting.append((position, staged))
            if not self._is_writing:
                self._is_writing = True
                threading.Thread(target=self._write_all, name=f"{self.name} snapshots", daemon=True).start()

    def wait(self, deadline_s: float) -> None:
        """Wait until everything has been written.

        Raises:
            RunError: it took longer than `deadline_s`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._is_writing, deadline_s):
                raise RunError(f"{self.name}: a snapshot was not written within {deadline_s:.0f} s")

    def report(self) -> dict[str, Any]:
        """Return the files and the failures by position."""
        return {
            "shards": {position: vars(file) for position, file in list(self.files.items())},
            "snapshot_errors": dict(self.errors),
        }

    def _write_all(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._is_writing = False
                    self._changed.notify_all()
                    return
                position, staged = self._waiting[0]
            self._write(position, staged)
            with self._changed:
                self._waiting.popleft()

    def _write(self, position: int, staged: Staged) -> None:
        name = f"{checkpoint_folder(position)}/{self.name}{self.suffix}.safetensors"
        try:
            self._note(self.files, position, write_shard(self.storage, name, staged, self.points.at(position)))
        except Exception as error:  # a full disk, a network, a credential: training goes on without this snapshot
            self._note(self.errors, position, (str(error) or type(error).__name__).splitlines()[0])

    def _note(self, notes: dict[int, Any], position: int, note: Any) -> None:
        notes[position] = note
        self.num_done += 1
        while len(notes) > MOST_KEPT:
            del notes[next(iter(notes))]


def checkpoint_folder(position: int) -> str:
    """Return the name of the folder that holds the snapshots of a position."""
    return f"batch-{position:09d}"
