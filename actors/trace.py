"""What a thread did when, for a few batches: the raw material of `timeline.json`.

Every actor keeps the spans of the same batches, so that a timeline shows one stretch of the run in all of
them. `Times` hands a span over whenever its thread turns to something else; outside the chosen batches that
costs one comparison.
"""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[str, str, int, float, float]
"""(share of the time, kind of work, batch id, begin, end); seconds on the actor's clock."""

SHORTEST_S = 2e-5
"""Shorter spans can't be seen in a timeline and are not kept."""

MOST = 4000
"""Spans that one actor keeps at most; further ones are counted only."""

FIRST, NUM_FIRST, NUM_LAST = 20, 21, 5


def sampled_batches(num_batches: int, phase_batches: int | None = None) -> tuple[range, ...]:
    """Return the batches whose spans every actor keeps: some of the steady state and the last ones.

    Args:
        num_batches: of the whole run.
        phase_batches: under `sequential`, batches of one block's phase; some of every phase are kept.
    """
    phase = phase_batches or num_batches
    starts = range(0, num_batches, max(1, phase))
    first = min(FIRST, max(0, phase - NUM_FIRST - NUM_LAST))
    windows = [range(start + first, min(start + first + NUM_FIRST, num_batches)) for start in starts]
    return (*windows, range(max(0, num_batches - NUM_LAST), num_batches))


class Trace:
    """The spans that one thread keeps.

    Args:
        batches: ids of the batches to keep.
        shortest_s: spans up to this length are left out.
    """

    def __init__(self, batches: Sequence[range], *, shortest_s: float = SHORTEST_S) -> None:
        self.spans: list[Span] = []
        self.num_left_out = 0
        self._batches, self._shortest_s = tuple(batches), shortest_s
        self._batch, self._keeps = -1, False

    def at(self, step: int, batch_id: int) -> None:
        """Say that the thread now works on `batch_id` in the course of batch `step`; kept if either is chosen."""
        self._batch = batch_id
        self._keeps = any(step in batches or batch_id in batches for batches in self._batches)

    def add(self, share: str, work: str, begin: float, end: float) -> None:
        """Keep what the thread has just ended, if its batch is chosen."""
        if not self._keeps or end - begin <= self._shortest_s:
            return
        if len(self.spans) < MOST:
            self.spans.append((share, work, self._batch, begin, end))
        else:
            self.num_left_out += 1
