"""A host as a Ray actor."""

from __future__ import annotations

from typing import Any

import ray

from actors.host import Host
from orchestrator.cluster.probe import probe


class RayHost(Host):
    """A host that knows which Ray node it is on."""

    def report(self) -> dict[str, Any]:
        """Return small facts about the actor, with Ray's node id."""
        return super().report() | self._node()

    def run(self) -> dict[str, Any]:
        """Run the actor to its end and return its last facts, with Ray's node id."""
        return super().run() | self._node()

    def probe(self, mark: str, text: str) -> dict[str, Any]:
        """Return what this process sees of the run directory, and its versions; see `orchestrator.cluster.probe`."""
        return probe(mark, text) | self._node()

    def _node(self) -> dict[str, str]:
        return {"node": ray.get_runtime_context().get_node_id()}


def remote_host(num_takes: int) -> Any:
    """Return Ray's class of hosts that serve so many takes at a time, and are never restarted by Ray."""
    wrap: Any = ray.remote(  # type: ignore[call-overload]
        concurrency_groups={"io": num_takes, "control": 1}, max_restarts=0, max_task_retries=0
    )
    return wrap(RayHost)
