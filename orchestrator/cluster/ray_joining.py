"""Actors whose next lives are being built: some wait for a process, and say what for; some have one, and may hang."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from orchestrator.cluster.contract import Assignment, Ended, Request
from orchestrator.cluster.ray_bundles import SAY_EVERY_S, missing, say_aloud

SAY_FIRST_S = 10.0
"""A process that has its place needs some seconds to start."""


@dataclass
class Build:
    """Actors that share a process.

    Args:
        request: what they ask for.
        assignments: what is built, by name.
        is_outside: whether the process was asked for outside of its bundle.
        ready: answer to the first call of the process; None once it has come.
        since_s: when the process was asked for, or was there.
        say_at_s: when it is told next that there is none.
    """

    request: Request
    assignments: Mapping[str, Assignment]
    is_outside: bool
    ready: Any
    since_s: float
    say_at_s: float


class Joining:
    """What is being built.

    Args:
        wait_s: longest wait for a process.
        deadline_s: longest wait for it to build the actors.
        say: told every 30 s what a process is waited for that does not come.
    """

    def __init__(self, wait_s: float, deadline_s: float, say: Callable[[str], None] = say_aloud) -> None:
        self._wait_s, self._deadline_s, self._say = wait_s, deadline_s, say
        self._builds: dict[Any, Build] = {}

    def __len__(self) -> int:
        return len(self._builds)

    @property
    def refs(self) -> list[Any]:
        """The calls that build them."""
        return list(self._builds)

    @property
    def names(self) -> set[str]:
        """The actors that are being built."""
        return {name for build in self._builds.values() for name in build.request.names}

    def add(
        self, ref: Any, process: Any, request: Request, assignments: Mapping[str, Assignment], *, is_outside: bool
    ) -> None:
        """Take in actors that a call builds in a process, which may not be there yet."""
        ready, now = process.__ray_ready__.options(concurrency_group="control").remote(), time.monotonic()
        self._builds[ref] = Build(request, assignments, is_outside, ready, now, now + SAY_FIRST_S)

    def pop(self, ref: Any) -> tuple[str, ...]:
        """Return the actors of a call that has ended."""
        return self._builds.pop(ref).request.names

    def drop(self, names: Collection[str]) -> None:
        """Forget these, which begin again."""
        self._builds = {ref: build for ref, build in self._builds.items() if build.request.names[0] not in names}

    def stranded(self) -> list[Build]:
        """Return those outside of their bundles that have no process, whenever it is time to say so."""
        now = time.monotonic()
        return [build for build in self._builds.values() if build.is_outside and self._is_due(build, now)]

    def late(self) -> list[Ended]:
        """Return those that have waited too long for a process, or to be built in it; say what is waited for."""
        found = {ref: ended for ref, build in self._builds.items() if (ended := self._look(build)) is not None}
        self._builds = {ref: build for ref, build in self._builds.items() if ref not in found}
        return list(found.values())

    def _look(self, build: Build) -> Ended | None:
        now, names = time.monotonic(), build.request.names
        if _has_process(build, now):
            reason = f"its next life was not ready within placement.deadline_s = {self._deadline_s:.0f} s"
            is_late = now - build.since_s > self._deadline_s
            return Ended(names[0], reason=reason, died=True) if is_late else None
        waited_s = now - build.since_s
        if waited_s < self._wait_s and not self._is_due(build, now):
            return None
        what = missing([build.request], f"for {' and '.join(names)} to go on")
        if waited_s >= self._wait_s:
            reason = (
                f"placement.wait_s: after {waited_s:.0f} s nothing was placed: {what}; add nodes, or raise "
                f"placement.wait_s, and resume the run"
            )
            return Ended(names[0], reason=reason, is_mistake=True)
        build.say_at_s = now + SAY_EVERY_S
        self._say(f"waiting for resources since {waited_s:.0f} s: {what}")
        return None

    def _is_due(self, build: Build, now: float) -> bool:
        return now >= build.say_at_s and not _has_process(build, now)


def _has_process(build: Build, now: float) -> bool:
    """Whether its process has started, or died; the time to build begins then."""
    if build.ready is not None and ray.wait([build.ready], timeout=0)[0]:
        build.ready, build.since_s = None, now
    return build.ready is None
