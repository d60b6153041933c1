"""Commits, verifies and reads checkpoints: shards first, the manifest last; a reader trusts only what verifies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from actors.errors import RunError, UserError
from actors.fail_points import NO_FAIL_POINTS, FailPoints
from actors.messages import Flags
from actors.shard import ShardFile, read_shard, shard_bytes
from actors.snapshots import checkpoint_folder
from actors.storage import Storage

MANIFEST = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: one shard per block, first block first, and what it says of the source."""

    storage: Storage
    position: int
    shards: tuple[ShardFile, ...]
    source: Mapping[str, Any] = field(default_factory=dict)
    cut: tuple[tuple[str, ...], ...] = ()
    """The names of every block's layers; empty if it does not say."""

    @property
    def folder(self) -> str:
        """The folder of its files, in the storage."""
        return checkpoint_folder(self.position)

    @property
    def is_last(self) -> bool:
        """Whether training had ended there, with all outstanding feedback handled."""
        return bool(Flags(self.source.get("orders", 0)) & Flags.LAST)

    def is_cut_otherwise(self, cut: Sequence[Sequence[str]]) -> bool:
        """Whether its blocks have other layers than these."""
        mine = [tuple(layers) for layers in self.cut]
        return len(self.shards) != len(cut) or bool(mine and mine != [tuple(layers) for layers in cut])

    def read(self, index: int) -> Any:
        """Return the state of the block with this index.

        Raises:
            RunError: the shard is missing or damaged.
        """
        return read_shard(self.storage, self.shards[index])

    def damage(self) -> list[str]:
        """Return what does not verify, one sentence per shard."""
        found = []
        for shard in self.shards:
            try:
                shard_bytes(self.storage, shard)
            except RunError as error:
                found.append(str(error))
        return found


class Checkpoints:
    """The checkpoints of one run.

    Args:
        storage: where they are.
        run: name of the run; manifests of another one are damaged.
        points: where this process dies, for tests.
        cut: the names of the layers of the blocks whose checkpoints are committed.
        fence: raises UserError once another orchestrator has taken over: nothing is committed or deleted then.
    """

    def __init__(
        self, storage: Storage, run: str | None = None, points: FailPoints = NO_FAIL_POINTS,
        cut: Sequence[Sequence[str]] = (), fence: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.storage, self.run, self.points = storage, run, points
        self.cut = tuple(tuple(layers) for layers in cut)
        self._fence = fence
        self._verified: set[int] = set()

    def commit(self, position: int, shards: Sequence[ShardFile], source: Mapping[str, Any]) -> Checkpoint:
        """Verify shards that have been written, then write their manifest: from then on the checkpoint exists.

        Raises:
            RunError: a shard is not what was written.
            OSError: the manifest can't be written.
            UserError: another orchestrator has taken over.
        """
        checkpoint = Checkpoint(self.storage, position, tuple(shards), source, self.cut)
        if damage := checkpoint.damage():
            raise RunError(damage[0])
        manifest = {
            "format": FORMAT,
            "run": self.run,
            "position": position,
            "cut": self.cut,
            "shards": [asdict(shard) for shard in shards],
            "source": dict(source),
        }
        data = json.dumps(manifest, indent=1).encode()
        self._fence()
        self.storage.write(f"{checkpoint.folder}/{MANIFEST}", data, self.points.at(position))
        self._verified.add(position)
        self.points.reach("written", position)
        return checkpoint

    def all(self) -> tuple[list[Checkpoint], list[str]]:
        """Return the checkpoints whose manifests can be read, oldest first, and what is wrong with the others."""
        found, damaged = [], []
        for name in self.storage.names(MANIFEST):
            try:
                found.append(self._read(name))
            except RunError as error:
                damaged.append(str(error))
        return sorted(found, key=lambda checkpoint: checkpoint.position), damaged

    def newest(self, *, goes_on: bool = False) -> Checkpoint | None:
        """Return the newest checkpoint of which every shard verifies, None if there is none.

        Args:
            goes_on: pass over one at which training had ended: a run goes on from before its feedback was drained.
        """
        for checkpoint in reversed(self.all()[0]):
            if not (goes_on and checkpoint.is_last) and not checkpoint.damage():
                return checkpoint
        return None

    def resume_point(self, *, is_finished: bool) -> tuple[Checkpoint | None, bool]:
        """Return the checkpoint to go on from, None for the beginning, and whether training had ended there.

        Args:
            is_finished: a job has trained the run to its end, and more epochs follow.

        Raises:
            UserError: checkpoints have been committed, and none verifies.
        """
        ended = self.newest()
        if is_finished and ended is not None and ended.is_last:
            return ended, True
        found = self.newest(goes_on=True)
        if found is None and ended is None:
            committed, damaged = self.all()
            damaged += [problem for checkpoint in committed for problem in checkpoint.damage()]
            if damaged:
                raise UserError(
                    f"{self.storage.address}: no checkpoint verifies ({damaged[0]}); start anew with --fresh"
                )
        return found, False

    def prune(self, keep: int, newest: int) -> None:
        """Delete all but `keep` checkpoints up to the newest one, and older files that were never committed.

        A damaged one is none of them, nor is what an earlier job has left at a later position.

        Args:
            keep: how many stay.
            newest: position of the one that was committed last: nothing goes before its successor is safe.

        Raises:
            UserError: another orchestrator has taken over.
        """
        kept: list[Checkpoint] = []
        for checkpoint in reversed(self.all()[0]):
            if len(kept) >= keep + (kept[0].is_last if kept else 0):  # a stopped run goes on from the one before
                break
            if checkpoint.position <= newest and self._verifies(checkpoint):
                kept.append(checkpoint)
        self._fence()
        for folder in self.storage.folders() if kept else ():
            if folder.startswith("batch-") and folder < kept[-1].folder:
                self.storage.delete(folder)

    def _verifies(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint verifies, or has done so once: each one is read back once in a job."""
        if checkpoint.position not in self._verified and not checkpoint.damage():
            self._verified.add(checkpoint.position)
        return checkpoint.position in self._verified

    def _read(self, name: str) -> Checkpoint:
        where = f"manifest {self.storage.address}/{name}"
        try:
            manifest: Mapping[str, Any] = json.loads(self.storage.read(name))
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']}, expected {FORMAT}")
            if self.run is not None and manifest["run"] != self.run:
                raise ValueError(f"it is of run {manifest['run']}, expected {self.run}")
            shards = tuple(ShardFile(**shard) for shard in manifest["shards"])
            cut = tuple(tuple(layers) for layers in manifest.get("cut", ()))
            return Checkpoint(self.storage, int(manifest["position"]), shards, manifest["source"], cut)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{where}: can't be used ({error})") from None


def newest_checkpoint(storage: Storage) -> Checkpoint:
    """Return the newest checkpoint that verifies.

    Raises:
        RunError: there is none; names what is damaged.
    """
    checkpoints = Checkpoints(storage)
    found = checkpoints.newest()
    if found is not None:
        return found
    committed, damaged = checkpoints.all()
    damaged += [problem for checkpoint in committed for problem in checkpoint.damage()]
    why = f"no checkpoint verifies: {damaged[0]}" if damaged else "holds no committed checkpoint; train the run first"
    raise RunError(f"{storage.address}: {why}")
