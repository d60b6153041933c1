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
    """

    def __init__(
        self, every: int | None = None, most_uncovered: int | None = None, *, after_evaluation: bool = False
    ) -> None:
        self.every, self.most_uncovered, self.after_evaluation = every, most_uncovered, after_evaluation
        self.is_asked = False
        """Set to have the next batch carry it."""
        self.committed = -1
        """Newest position that a checkpoint covers."""
        self.waits = 0
        """How often the source has had to wait for a checkpoint."""
        self._newest = -1
        self._is_waiting = False

    def due(self, batch_id: int, *, is_evaluated: bool) -> bool:
        """Whether a batch carries the order; asked once per batch, in their order."""
        due = self.is_asked or (self.every is not None and (batch_id + 1) % self.every == 0)
        self.is_asked = is_evaluated and self.after_evaluation
        if self.most_uncovered is not None and self._newest <= self.committed:
            due = due or batch_id - self.committed >= EARLY * self.most_uncovered
        if due:
            self._newest = batch_id
        return due

    def must_wait(self, batch_id: int) -> bool:
        """Whether a batch may not leave before the next checkpoint; one that is asked for the order may."""
        is_full = self.most_uncovered is not None and batch_id - self.committed > self.most_uncovered
        must = is_full and not self.is_asked
        self.waits += must and not self._is_waiting
        self._is_waiting = must
        return must
