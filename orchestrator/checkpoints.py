"""Commits, verifies and reads checkpoints: shards first, the manifest last; a reader trusts only what verifies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.errors import RunError, UserError
from actors.fail_points import NO_FAIL_POINTS, FailPoints
from actors.messages import Flags
from actors.shard import ShardFile, read_shard, shard_bytes
from actors.snapshots import checkpoint_folder
from actors.storage import Storage
from orchestrator.manifest import Manifest, Source, decoded

MANIFEST = "manifest.json"


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


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    `checkpoint`: None: at the beginning. `goes_on`: training had ended there. `notes`: what is not used, and why.
    """

    checkpoint: Checkpoint | None
    goes_on: bool
    notes: list[str]


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
        manifest = Manifest(
            run=self.run, position=position, cut=self.cut, shards=checkpoint.shards, source=Source(**source)
        )
        name = f"{checkpoint.folder}/{MANIFEST}"
        self._fence()
        self.storage.write(name, manifest.encoded(), self.points.at(position))
        self._verified.add(position)
        self.points.reach("written", position)
        return checkpoint

    def all(self) -> tuple[list[Checkpoint], list[str]]:
        """Return the checkpoints whose manifests can be read, oldest first, and what is wrong with the others.

        Raises:
            RunError: the storage can't be read.
        """
        found, damaged = [], []
        for name in self._names():
            try:
                found.append(self._read(name))
            except RunError as error:
                damaged.append(str(error))
        return sorted(found, key=lambda checkpoint: checkpoint.position), damaged

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest checkpoint of which every shard verifies, None if there is none, and what is damaged."""
        committed, notes = self.all()
        for checkpoint in reversed(committed):
            if not (damage := checkpoint.damage()):
                return checkpoint, notes
            notes += damage
        return None, notes

    def uncommitted(self) -> list[str]:
        """Return the folders of checkpoints that have no manifest, sorted."""
        committed = {name.split("/")[0] for name in self._names()}
        return [folder for folder in self.storage.folders() if _is_ours(folder) and folder not in committed]

    def no_manifest(self, folder: str) -> str:
        """Return the sentence that says why a folder is not used."""
        return f"{self.storage.address}/{folder}: has no manifest, so it was never committed or has lost it; not used"

    def resume_point(self, *, is_finished: bool) -> ResumePoint:
        """Return where to go on: at the newest checkpoint that verifies and is not one at which training had ended.

        Args:
            is_finished: a job has trained the run to its end, and more epochs follow: they go on from there.

        Raises:
            UserError: checkpoints are damaged or missing, and none is left to go on from.
        """
        committed, notes = self.all()
        uncommitted = self.uncommitted()
        is_damaged, ended = bool(notes), None
        notes += [self.no_manifest(folder) for folder in uncommitted]
        for checkpoint in reversed(committed):
            if damage := checkpoint.damage():
                is_damaged = True
                notes += damage
            elif is_finished or not checkpoint.is_last:
                return ResumePoint(checkpoint, checkpoint.is_last, notes)
            else:
                ended = ended or checkpoint
        if ended is not None and any(folder < ended.folder for folder in uncommitted):
            is_damaged = True  # a commit deletes what was never committed before it, so this one has lost its manifest
        why = "no checkpoint verifies"
        if ended is not None:
            why = f"only the checkpoint at batch {ended.position} verifies, at which training had ended"
        if is_damaged:
            raise UserError(f"{self.storage.address}: {why} ({notes[0]}); start anew with --fresh")
        if ended is not None or uncommitted:
            notes.append(f"{self.storage.address}: {why}; the run begins again at its first batch")
        return ResumePoint(None, False, notes)

    def prune(self, keep: int, newest: int) -> None:
        """Delete all but `keep` checkpoints up to the newest one, and older files that were never committed.

        A damaged one is none of them, nor is what an earlier job has left at a later position.

        Args:
            keep: how many stay.
            newest: position of the one that was committed last: nothing goes before its successor is safe.

        Raises:
            UserError: another orchestrator has taken over.
            OSError: one can't be deleted; the others are.
        """
        kept: list[Checkpoint] = []
        for checkpoint in reversed(self.all()[0]):
            if len(kept) >= keep + (kept[0].is_last if kept else 0):  # a stopped run goes on from the one before
                break
            if checkpoint.position <= newest and self._verifies(checkpoint):
                kept.append(checkpoint)
        self._fence()
        self.points.reach("pruning", newest)
        why: Exception | None = None
        for folder in self.storage.folders() if kept else ():
            if _is_ours(folder) and folder < kept[-1].folder:
                try:
                    self.storage.delete(folder, MANIFEST)
                except Exception as error:
                    why = error
                self.points.reach("half pruned", newest)
        if why is not None:
            raise why

    def discard(self, positions: Sequence[int]) -> None:
        """Delete what was written of checkpoints that will never be complete; one that was committed before stays.

        Raises:
            UserError: another orchestrator has taken over.
            OSError: one can't be deleted.
        """
        folders = set(map(checkpoint_folder, positions)) & set(self.uncommitted())
        self._fence()
        for folder in sorted(folders):
            self.storage.delete(folder, MANIFEST)

    def _names(self) -> list[str]:
        """Return the names of all manifests."""
        try:
            return self.storage.names(MANIFEST)
        except OSError as error:
            raise RunError(
                f"{self.storage.address}: checkpoints can't be listed ({error}); see to the storage, and give the "
                f"same command again"
            ) from None

    def _verifies(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint verifies, or has done so once: each one is read back once in a job."""
        if checkpoint.position not in self._verified and not checkpoint.damage():
            self._verified.add(checkpoint.position)
        return checkpoint.position in self._verified

    def _read(self, name: str) -> Checkpoint:
        where = f"manifest {self.storage.address}/{name}"
        try:
            manifest = decoded(self.storage.read(name))
            if self.run is not None and manifest.run != self.run:
                raise ValueError(f"it is of run {manifest.run}, expected {self.run}")
            if name.split("/")[0] != checkpoint_folder(manifest.position):
                raise ValueError(f"it is of the checkpoint at batch {manifest.position}")
        except (OSError, ValueError) as error:
            raise RunError(f"{where}: can't be used ({error})") from None
        source = manifest.source.model_dump()
        return Checkpoint(self.storage, manifest.position, manifest.shards, source, manifest.cut)


def _is_ours(folder: str) -> bool:
    return folder.startswith("batch-")


def newest_checkpoint(storage: Storage) -> tuple[Checkpoint, list[str]]:
    """Return the newest checkpoint that verifies, and what is damaged.

    Raises:
        RunError: there is none; names what is damaged.
    """
    found, damaged = Checkpoints(storage).newest()
    if found is not None:
        return found, damaged
    why = f"no checkpoint verifies: {damaged[0]}" if damaged else "holds no committed checkpoint; train the run first"
    raise RunError(f"{storage.address}: {why}")
