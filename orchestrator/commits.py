"""Turns the actors' snapshots into committed checkpoints, and says when the next one is due."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from actors.errors import RunError, UserError
from actors.shard import ShardFile
from orchestrator.background import Background
from orchestrator.checkpoints import Checkpoint, Checkpoints

AWAITED_S = 5.0
"""After the source has waited for a checkpoint: it will soon wait for the next one."""
RETRY_S = 10.0
"""After a snapshot that could not be written; what it was to cover is still kept."""


class Commits:
    """The checkpoints of a running job.

    Args:
        checkpoints: where they are committed.
        keep: newest ones that stay.
        every_s: seconds between two that are asked for; None: none is.
        clock: seconds.
        newest: the one that the job has started from.
        in_background: whether shards are read back and old ones deleted beside the caller; else `note` does it.
    """

    def __init__(
        self, checkpoints: Checkpoints, keep: int, every_s: float | None, clock: Callable[[], float],
        newest: Checkpoint | None = None, *, in_background: bool = False,
    ) -> None:  # fmt: skip
        self.checkpoints, self.keep, self.every_s, self._clock = checkpoints, keep, every_s, clock
        self.newest = newest
        self.error: str | None = None
        """Why the newest one could not be committed; None after a success."""
        self.left_over: str | None = None
        """Why older ones could not be deleted; None after a success."""
        self._source: dict[int, Mapping[str, Any]] = {}
        self._shards: dict[int, dict[str, ShardFile]] = {}
        self._failed: dict[int, str] = {}
        """By position, why it is no checkpoint."""
        self._since = clock()
        self._is_asked = False
        self._work = Background("checkpoints", is_beside=in_background)
        self._done: list[Checkpoint] = []
        """Committed, and not told of yet."""
        self._is_unpruned = False
        self._num_waits, self._awaited_until = 0, clock()
        self._has_unneeded = False
        """Whether a further position is none, of which other blocks may have written."""

    @property
    def has_news(self) -> bool:
        """Whether `note` should be called now, since what was done beside it is over."""
        return self._work.has_answer

    @property
    def is_awaited(self) -> bool:
        """Whether the source can't go on before the next one, or could not lately."""
        return self._clock() < self._awaited_until

    @property
    def position(self) -> int:
        """Newest position that is covered; -1: none is."""
        return self.newest.position if self.newest is not None else -1

    def is_due(self) -> bool:
        """Whether a snapshot is to be ordered now: once per interval, and soon again after one has failed."""
        interval = self.every_s if self.error is None else min(RETRY_S, self.every_s or RETRY_S)
        if interval is None or self._is_asked or self._clock() - self._since < interval:
            return False
        self._is_asked = True
        return True

    def ask_again(self) -> None:
        """Let `is_due` order another snapshot: the one that was asked for may have died with an actor."""
        self._is_asked = False

    def note(
        self, source: Mapping[str, Any] | None, blocks: Sequence[Mapping[str, Any]], *, at_end: bool = False
    ) -> list[Checkpoint]:
        """Take in reports; commit every further position of which all snapshots have been written.

        Not to be called while another life of a block begins: it may need what a newer checkpoint makes superfluous.

        Args:
            source: the source's report, if there is one.
            blocks: the blocks' reports, first to last.
            at_end: wait for everything that is to be done beside the caller.

        Returns:
            What has been committed since the call before.

        Raises:
            UserError: another orchestrator has taken over.
        """
        if source is not None:
            positions = source["positions"].items()
            self._source |= {position: entry for position, entry in positions if position > self.position}
            waits = source["waits_for_checkpoint"]  # another life of the source counts anew
            if source["is_waiting_for_checkpoint"] or waits != self._num_waits:
                self._num_waits, self._awaited_until = waits, self._clock() + AWAITED_S
        for facts in blocks:
            for position, shard in facts["shards"].items():
                if position > self.position:
                    self._shards.setdefault(position, {})[facts["name"]] = ShardFile(**shard)
            for position, reason in facts["snapshot_errors"].items():
                self._fail(position, f"{facts['name']}: {reason}")
        names = [facts["name"] for facts in blocks]
        while self._pick_up(wait=at_end) and self._begin(names):
            pass
        done, self._done = self._done, []
        return done

    def check_last(self) -> None:
        """Refuse the end of a run whose last checkpoint is missing.

        Raises:
            RunError: what was learned since the newest one would be lost in silence.
        """
        if self.newest is None or not self.newest.is_last:
            reason = self._failed[max(self._failed)] if self._failed else "the blocks have not written the last one"
            raise RunError(
                f"training has ended, and what was learned after batch {self.position} is not saved: {reason}; "
                f"make room and give the same command again, which goes on from there"
            )

    def forget_uncommitted(self) -> None:
        """Let go of snapshots after the newest checkpoint, which this may make wait for: all actors return to it."""
        self._pick_up(wait=True)
        self._shards = {position: shards for position, shards in self._shards.items() if position <= self.position}

    def _pick_up(self, *, wait: bool) -> bool:
        """Take in what was done beside the caller; return whether the next thing may begin."""
        if self._work.has_answer or (wait and not self._work.is_free):
            take_in: Callable[[], None] = self._work.answer()
            take_in()
        return self._work.is_free

    def _begin(self, names: Sequence[str]) -> bool:
        """Begin what is to be done next; return whether there was something."""
        if self._is_unpruned:
            self._is_unpruned, newest = False, self.position
            self._work.begin(lambda: self._prune(newest))
        elif self._has_unneeded:
            self._has_unneeded, failed = False, [position for position in self._failed if position > self.position]
            self._work.begin(lambda: self._discard(failed))
        elif ready := sorted(self._ready(names)):  # all of them, lest more become ready than are committed
            due = [(at, [self._shards[at][name] for name in names], self._source[at]) for at in ready]
            self._work.begin(lambda: self._commit_all(due))
        else:
            return False
        return True

    def _ready(self, names: Sequence[str]) -> list[int]:
        return [
            position
            for position, shards in self._shards.items()
            if position > self.position
            and position not in self._failed
            and position in self._source
            and shards.keys() >= set(names)
        ]

    def _commit_all(self, due: Sequence[tuple[int, Sequence[ShardFile], Mapping[str, Any]]]) -> Callable[[], None]:
        """Write checkpoints, oldest first; return what takes them in."""
        taking = [self._commit(*each) for each in due]

        def take_in() -> None:
            for take in taking:
                take()

        return take_in

    def _commit(self, position: int, shards: Sequence[ShardFile], source: Mapping[str, Any]) -> Callable[[], None]:
        """Write a checkpoint; return what takes that in."""
        try:
            checkpoint = self.checkpoints.commit(position, shards, source)
        except UserError:  # another orchestrator has taken over
            raise
        except Exception as error:  # a full disk, a network, a credential: training goes on without this checkpoint
            reason = _line(error)
            return lambda: self._fail(position, reason)
        return lambda: self._committed(checkpoint)

    def _committed(self, checkpoint: Checkpoint) -> None:
        self.newest, self.error = checkpoint, None
        self._since, self._is_asked = self._clock(), False
        self._done.append(checkpoint)
        self._is_unpruned = True
        for known in (self._shards, self._source):
            for old in [place for place in known if place <= checkpoint.position]:
                del known[old]

    def _discard(self, failed: Sequence[int]) -> Callable[[], None]:
        """Delete what blocks have written of positions that are no checkpoints: it may fill the disk that refused them.

        Where that fails, `error` tells of the disk already; the next failure or checkpoint tries again.
        """
        with suppress(OSError):
            self.checkpoints.discard(failed)
        return lambda: None

    def _prune(self, newest: int) -> Callable[[], None]:
        """Delete what is no longer needed; what can't be deleted now is looked for again after the next checkpoint."""
        why = None
        try:
            self.checkpoints.prune(self.keep, newest)
        except UserError:
            raise
        except Exception as error:
            why = f"old checkpoints can't be deleted ({_line(error)}); training goes on"
        return lambda: self._pruned(why)

    def _pruned(self, why: str | None) -> None:
        self.left_over = why

    def _fail(self, position: int, reason: str) -> None:
        """An unwritten snapshot: the checkpoint before stays, and the next interval tries again."""
        if position in self._failed or position <= self.position:
            return
        self._has_unneeded = True
        self.error = self._failed[position] = f"checkpoint at batch {position} was not written ({reason})"
        self._since, self._is_asked = self._clock(), False


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
