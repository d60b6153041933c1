"""Carrier over Ray: a take is an actor call of the producer, in its own concurrency group.

The consumer owns the results, so a message that was taken survives its producer's process. Buffers
above Ray's inline limit come as read-only views of shared memory. A reply is fetched by Ray's own thread
as soon as it is there, while the program computes; the program only picks it up.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from ray import exceptions

from actors.errors import EdgeError, LostReply
from actors.transport.outbox import Reply, Take


class RayPort:
    """Line to the outbox of a Ray actor.

    Args:
        producer: handle of an actor with a method `take(Take) -> Reply` and a concurrency group `io`.
        method: another name of that method.
    """

    def __init__(self, producer: Any, method: str = "take") -> None:
        self._producer = producer
        self._take = getattr(producer, method).options(concurrency_group="io", enable_task_events=False)
        self._ended: SimpleQueue[tuple[Take, Reply | Exception]] = SimpleQueue()

    def __reduce__(self) -> tuple[Callable[..., RayPort], tuple[Any]]:
        return RayPort, (self._producer,)

    def request(self, take: Take) -> None:
        """Start the call."""
        self._take.remote(take).future().add_done_callback(partial(self._note, take))

    def _note(self, take: Take, call: Future[Reply]) -> None:
        reply = _result(call)
        self._ended.put((take, reply.opened(take.edge) if isinstance(reply, Reply) else reply))

    def collect(self, wait_s: float) -> list[tuple[Take, Reply | Exception]]:
        """Return the calls that ended, waiting up to `wait_s` seconds for the first."""
        found: list[tuple[Take, Reply | Exception]] = []
        try:
            found.append(self._ended.get(timeout=wait_s))
            while True:
                found.append(self._ended.get_nowait())
        except Empty:
            return found


def _result(call: Future[Reply]) -> Reply | Exception:
    try:
        return call.result()
    except exceptions.RayTaskError as error:
        cause = error.cause
        return cause if isinstance(cause, EdgeError) else EdgeError(f"the producer failed: {cause}")
    except (exceptions.ActorUnavailableError, exceptions.ObjectLostError) as error:  # of a wire, or with a node
        return LostReply(f"a reply of the producer was lost: {error}".splitlines()[0])
    except exceptions.RayActorError as error:
        return ConnectionError(f"the producer's process is gone: {error}".splitlines()[0])
