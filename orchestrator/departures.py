"""Actors that move: off nodes that announce their end (drained, preempted, SIGTERM), and back when nodes return.

A snapshot is ordered first. Once its checkpoint covers what the actors have done, or little time is left, others take
their places; the others train on, and under first in, first out no weight is different.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.commits import Commits
from orchestrator.recovery import Recovery

START_S = 10.0
"""What another life needs before a node's end, so that its consumers find its messages at the old one meanwhile."""


@dataclass
class Departure:
    """A node that will end.

    Args:
        at_s: when, on the run's clock.
        position: what the newest checkpoint covered when the node announced it.
        move_by_s: when its actors are moved at the latest.
    """

    at_s: float
    position: int
    move_by_s: float


class Departures:
    """Moves actors off nodes that will end, and to the places that they have again.

    Args:
        recovery: replaces them.
        commits: knows the newest checkpoint.
        snapshot: orders one.
        event: records what happened once.
        say: tells the user.
        clock: seconds.
    """

    def __init__(
        self, recovery: Recovery, commits: Commits, snapshot: Callable[[], None],
        event: Callable[..., None], say: Callable[[str], None], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.recovery, self.commits, self._snapshot = recovery, commits, snapshot
        self.event, self.say, self._clock = event, say, clock
        self._nodes: dict[str, Departure] = {}
        self._actors: dict[str, str] = {}
        self._astray_since: int | None = None

    def is_announced(self, actor: str) -> bool:
        """Whether the node that an actor was last heard from had announced its end."""
        return self._actors.get(actor) in self._nodes

    def look(self, leaving: Mapping[str, float], actors: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in which nodes will end, and move what can be moved.

        Args:
            leaving: node -> seconds left.
            actors: the newest reports of those that run.

        Raises:
            RunError: actors had to move too often.
        """
        self._actors |= {name: facts["node"] for name, facts in actors.items()}
        for node, left_s in leaving.items():
            there = [name for name, facts in actors.items() if facts["node"] == node and not facts["done"]]
            if node not in self._nodes:
                self._announce(node, left_s, there)
                if there or not all(facts["done"] for facts in actors.values()):
                    self._snapshot()  # of a node without actors, too: it may be the orchestrator's own
            departure = self._nodes[node]
            is_covered = self.commits.position > departure.position
            if self.recovery.mode == "none" or not (is_covered or self._clock() >= departure.move_by_s):
                continue
            for name in there:
                if name not in self.recovery.losses:
                    self.recovery.move(name, f"its node {node[:12]} ends in {departure.at_s - self._clock():.0f} s")

    def settle(
        self, actors: Mapping[str, Mapping[str, Any]], astray: Callable[[Mapping[str, str]], Sequence[str]]
    ) -> None:
        """Move actors to where they belong, once a snapshot covers what they have done; those that have ended stay.

        Args:
            actors: the newest reports of those that run.
            astray: tells which of some actors, given their nodes, have a place to go to, as `Cluster.astray`.
        """
        away = astray({name: facts["node"] for name, facts in actors.items() if not facts["done"]})
        if not away or self.recovery.losses:
            self._astray_since = None
        elif self._astray_since is None:
            self._astray_since = self.commits.position
            self.event(event="astray", actors=list(away))
            self._snapshot()
        elif self.commits.position > self._astray_since:
            self._astray_since = None
            for name in away:
                if name not in self.recovery.losses:
                    self.recovery.move(name, "there is a place for it again", is_announced=False)

    def _announce(self, node: str, left_s: float, there: list[str]) -> None:
        now = self._clock()
        self._nodes[node] = Departure(now + left_s, self.commits.position, now + max(left_s / 2, left_s - START_S))
        self.event(event="drain", node=node, left_s=round(left_s, 3), actors=there)
        if there:
            self.say(f"node {node[:12]} ends in {left_s:.0f} s; {', '.join(there)} will go on elsewhere")
