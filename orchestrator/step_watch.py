"""Tells an actor that hangs from one that is slow: how long its steps last, and for how long it is silent. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LEAST_DEADLINE_S = 60.0
STEPS = 20
FIRST_STEP_S = 600.0
"""A life's first step may compile: it may last as long as it likes, and be silent for so long."""
LOOK_S = 5.0
"""Reports are read once a second; after a longer gap it is the reader who was busy."""
MOST_STEPS = 64


@dataclass
class _Life:
    """What is known of an actor's life; seconds on the watch's clock."""

    heard_s: float
    first_version: int | None = None
    version: int | None = None
    computed_s: float | None = None
    """What it had computed when its version was seen to change; None: not since the start."""
    busy_s: float = 0.0
    may_compile: bool = False

    @property
    def is_exempt(self) -> bool:
        """Whether its step may last: the first one, or one that may compile."""
        return self.version == self.first_version or self.may_compile


class StepWatch:
    """The steps of all actors, by their reports: what they compute, without what they wait for.

    Args:
        deadline_s: longest step; `auto`: 20 median steps of the actor, at least 60 s.
        clock: seconds.
    """

    def __init__(self, deadline_s: float | str, clock: Callable[[], float]) -> None:
        self._given, self._clock = deadline_s, clock
        self._lives: dict[str, _Life] = {}
        self._steps: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_STEPS))
        self._looked_s = self._since_s = clock()

    def begin(self, names: Iterable[str]) -> None:
        """Watch lives that begin to run now; silence counts before their first report, too."""
        self._lives |= {name: _Life(self._clock()) for name in names}

    def forget(self, name: str) -> None:
        """Watch an actor's life no more; what its steps took is still known."""
        self._lives.pop(name, None)

    def restart(self) -> None:
        """Count from now on: there was a pause, in which no actor had to do anything."""
        self._looked_s = self._since_s = now = self._clock()
        for life in self._lives.values():
            life.heard_s = now

    def heard(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in the reports that have just come, of those that are watched."""
        now = self._clock()
        if now - self._looked_s > LOOK_S:  # nobody listened
            for life in self._lives.values():
                life.heard_s = now
        self._looked_s = now
        for name, facts in reports.items():
            if (life := self._lives.get(name)) is not None:
                life.heard_s, life.busy_s = now, facts["busy_s"]
                life.may_compile = facts.get("may_compile", False)
                self._note_version(name, life, facts["version"], facts["computed_s"])

    def _note_version(self, name: str, life: _Life, version: int, computed_s: float) -> None:
        if life.first_version is None or life.version is None:
            life.first_version = life.version = version
        elif version > life.version:
            if life.computed_s is not None:
                self._steps[name].append((computed_s - life.computed_s) / (version - life.version))
            life.version, life.computed_s = version, computed_s

    def silent_s(self, name: str) -> float:
        """Return the seconds since an actor was last heard; 0 if it is not watched."""
        life = self._lives.get(name)
        return 0.0 if life is None else self._clock() - life.heard_s

    def hung(self) -> dict[str, float]:
        """Return the actors whose step or silence lasts past their deadline, and for how many seconds it does."""
        now, found = self._clock(), {}
        for name, life in self._lives.items():
            busy_s = 0.0 if life.is_exempt else min(life.busy_s, now - self._since_s)
            lasts_s = max(busy_s, now - life.heard_s)
            if lasts_s > self.deadline_s(name):
                found[name] = lasts_s
        return found

    def deadline_s(self, name: str) -> float:
        """Return the longest step, and silence, of a watched actor now; of a step that is exempt, the silence."""
        life, given = self._lives[name], self._given
        if isinstance(given, str):
            steps = self._steps[name]
            given = max(LEAST_DEADLINE_S, STEPS * statistics.median(steps)) if steps else LEAST_DEADLINE_S
        return max(FIRST_STEP_S, given) if life.is_exempt else given
