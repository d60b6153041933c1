"""When a batch carries the order to take a snapshot. Pure."""

from __future__ import annotations

EARLY = 0.8
"""An early snapshot is ordered at this part of what may be uncovered."""


class SnapshotOrders:
    """Decides it for the source, batch by batch.

    Args:
        every: batches between snapshots; None: only when asked.
        most_uncovered: batches that may leave before a checkpoint covers them; None: no limit.
            What is uncovered is retained by its producers, so this bounds their memory.
        after_evaluation: whether the batch after an evaluation carries it, so that evaluation batches are
            covered soon, too.
        first_new: the first batch that surely no block has been sent by an earlier life of the source. A block drops
            what it has, with its orders: what is asked for waits for this batch.
    """

    def __init__(
        self, every: int | None = None, most_uncovered: int | None = None, *, after_evaluation: bool = False,
        first_new: int = 0,
    ) -> None:  # fmt: skip
        self.every, self.most_uncovered, self.after_evaluation = every, most_uncovered, after_evaluation
        self.first_new = first_new
        self.is_asked = False
        """Set to have the next batch carry it."""
        self.committed = -1
        """Newest position that a checkpoint covers."""
        self.waits = 0
        """How often the source has had to wait for a checkpoint."""
        self._newest = -1
        self._follows_evaluation = False
        self.is_waiting = False
        """Whether it waits now."""

    def due(self, batch_id: int, *, is_evaluated: bool) -> bool:
        """Whether a batch carries the order; asked once per batch, in their order."""
        if self.most_uncovered is not None and self._newest <= self.committed:
            self.is_asked = self.is_asked or batch_id - self.committed >= EARLY * self.most_uncovered
        is_new = batch_id >= self.first_new
        due = self._follows_evaluation or (self.every is not None and (batch_id + 1) % self.every == 0)
        due = due or (self.is_asked and is_new)
        self.is_asked = self.is_asked and not is_new
        self._follows_evaluation = is_evaluated and self.after_evaluation
        if due:
            self._newest = batch_id
        return due

    def must_wait(self, batch_id: int) -> bool:
        """Whether a batch may not leave before the next checkpoint; one that is asked for the order may."""
        is_full = self.most_uncovered is not None and batch_id - self.committed > self.most_uncovered
        must = is_full and not (self.is_asked or self._follows_evaluation)
        self.waits += must and not self.is_waiting
        self.is_waiting = must
        return must
