"""Decides what a lost or failed actor means for the run. Pure.

A block that raises at the same batch in two lives, or whose process dies during the step of the same batch in
three consecutive lives, would do so for ever. Deaths elsewhere (while restoring, or while repeating earlier
batches) may be anything, and only count towards `max_failures`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

SAME_RAISES = 2
SAME_DEATHS = 3
NODE_S = 10.0
"""Actors of a node other than the driver's that die within this time of each other die of one failure."""


@dataclass(frozen=True)
class Failure:
    """How an actor was lost.

    Args:
        actor: its name.
        reason: one line.
        batch: that it was training on, None if that is unknown or it was between batches.
        raised: whether its program raised; else its process died or hung.
        announced: whether its node had said that it would end.
        node: where it was, if that is not the driver's node.
        at_s: when it was lost; seconds on any clock.
    """

    actor: str
    reason: str
    batch: int | None = None
    raised: bool = False
    announced: bool = False
    node: str = ""
    at_s: float = 0.0


class Failures:
    """The failures of a run.

    Args:
        max_failures: after which the run ends.
        backoff_s: wait before the first replacement of an actor; doubled each further time.
        max_preemptions: actors on nodes that announced their end, counted apart; None: any number.
    """

    def __init__(self, max_failures: int, backoff_s: float = 0.0, max_preemptions: int | None = None) -> None:
        self.max_failures, self.backoff_s, self.max_preemptions = max_failures, backoff_s, max_preemptions
        self.count = self.num_preemptions = 0
        self._of: Counter[str] = Counter()
        self._raised: Counter[tuple[str, int]] = Counter()
        self._died: dict[str, tuple[int | None, int]] = {}
        self._node: tuple[str, float, set[str]] = ("", 0.0, set())
        """Of the newest failure: where it was, when, and who has died of it."""

    def add(self, failure: Failure) -> str | None:
        """Count a failure; return why the run must end, None if the actor may be replaced."""
        if failure.announced:
            return self._preempted(failure)
        self.count += self._is_another(failure)
        self._of[failure.actor] += 1
        same = self._same(failure)
        if same is not None:
            return same
        if self.count > self.max_failures:
            return (
                f"{failure.actor}: {failure.reason}; that is failure {self.count}, more than recovery.max_failures = "
                f"{self.max_failures}; the run can be resumed from its last checkpoint"
            )
        return None

    def _is_another(self, failure: Failure) -> bool:
        """Whether this is not just one more actor that a lost node has taken with it."""
        node, since_s, actors = self._node
        is_of_node = failure.node != "" and failure.node == node and failure.at_s - since_s <= NODE_S
        if is_of_node and not failure.raised and failure.actor not in actors:
            actors.add(failure.actor)
            return False
        self._node = (failure.node, failure.at_s, {failure.actor})
        return True

    def _preempted(self, failure: Failure) -> str | None:
        self.num_preemptions += 1
        if self.max_preemptions is None or self.num_preemptions <= self.max_preemptions:
            return None
        return (
            f"{failure.actor}: {failure.reason}; that is preemption {self.num_preemptions}, more than "
            f"recovery.max_preemptions = {self.max_preemptions}; the run can be resumed from its last checkpoint"
        )

    def wait_s(self, actor: str) -> float:
        """Return the seconds to wait before an actor is replaced."""
        return self.backoff_s * 2 ** max(0, self._of[actor] - 1)

    def _same(self, failure: Failure) -> str | None:
        name, batch = failure.actor, failure.batch
        if failure.raised and batch is not None:
            self._raised[name, batch] += 1
            if self._raised[name, batch] >= SAME_RAISES:
                return f"{name} raised at batch {batch} in {SAME_RAISES} lives, so it always will: {failure.reason}"
        if failure.raised:
            return None
        known, times = self._died.get(name, (None, 0))
        times = times + 1 if batch is not None and batch == known else 1
        self._died[name] = (batch, times)
        if batch is not None and times >= SAME_DEATHS:
            return (
                f"{name} died during the step of batch {batch} in {times} consecutive lives, so it always will: "
                f"{failure.reason}"
            )
        return None
