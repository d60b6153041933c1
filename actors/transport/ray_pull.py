"""Carrier over Ray: a take is an actor call of the producer, in its own concurrency group.

The consumer owns the results, so a message that was taken survives its producer's process. Buffers
above Ray's inline limit come as read-only views of shared memory.
"""

from __future__ import annotations

from typing import Any

import ray
from ray import exceptions

from actors.errors import EdgeError, LostReply
from actors.transport.outbox import Reply, Take


class RayPort:
    """Line to the outbox of a Ray actor.

    Args:
        producer: handle of an actor with a method `take(Take) -> Reply` and a concurrency group `io`.
    """

    def __init__(self, producer: Any) -> None:
        self._take = producer.take.options(concurrency_group="io", enable_task_events=False)
        self._calls: dict[ray.ObjectRef, Take] = {}

    def request(self, take: Take) -> None:
        """Start the call."""
        self._calls[self._take.remote(take)] = take

    def collect(self, wait_s: float) -> list[tuple[Take, Reply | Exception]]:
        """Return the calls that ended, waiting up to `wait_s` seconds for the first."""
        ready, pending = ray.wait(list(self._calls), num_returns=1, timeout=wait_s)
        if ready and pending:
            ready += ray.wait(pending, num_returns=len(pending), timeout=0)[0]
        return [(self._calls.pop(ref), _result(ref)) for ref in ready]


def _result(ref: ray.ObjectRef) -> Reply | Exception:
    try:
        return ray.get(ref)
    except exceptions.RayTaskError as error:
        cause = error.cause
        return cause if isinstance(cause, EdgeError) else EdgeError(f"the producer failed: {cause}")
    except (exceptions.ActorUnavailableError, exceptions.ObjectLostError) as error:  # of a wire, or with a node
        return LostReply(f"a reply of the producer was lost: {error}".splitlines()[0])
    except exceptions.RayActorError as error:
        return ConnectionError(f"the producer's process is gone: {error}".splitlines()[0])
