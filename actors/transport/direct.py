"""Carrier over Ray Direct Transport (alpha in Ray): a take is an actor call, large tensors are fetched beside it.

The producer leaves them where they lie and registers their memory with NIXL; the consumer reads them from there into
memory of its own, in a thread beside its program. Headers and small tensors come with the reply as over any carrier.
Unlike a reply of `ray_pull.py`, what was taken and not yet fetched dies with the producer's process: it is a reply that
was lost, and is asked for again.
"""

from __future__ import annotations

import importlib
import socket
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any

import ray
import torch
from ray._private import worker
from ray.experimental import set_target_device_for_ref
from torch import Tensor

from actors.errors import EdgeError, LostReply, UserError
from actors.transport.outbox import Reply, Take
from actors.transport.packet import Fetched, Referred
from actors.transport.ray_pull import RayPort
from actors.transport.staging import memory_apart

FETCH_DEADLINE_S = 30.0
"""For what one reply refers to."""
MOST_FAILED = 8
"""Replies in a row whose tensors can't be fetched before the edge gives up: a producer that answers has them."""

Get = Callable[[list[Any]], Sequence[Sequence[Tensor]]]
"""Returns the tensors that each reference stands for."""


def put(tensors: list[Tensor]) -> Any:
    """Keep tensors where others can fetch them, as long as somebody holds the reference that is returned.

    Their device finishes all its work first.
    """
    return ray.put(tensors, _tensor_transport="nixl")


def read(references: list[Any], device: str) -> Sequence[Sequence[Tensor]]:
    """Fetch tensors to a device, those of one reference after those of another.

    Ray could begin with all at once. But each brings news of what its producer has registered, and where memory was
    freed in between, NIXL gives up what is still on its way from there.

    Raises:
        RayError: their producer is gone, or they did not come in time.
    """
    until = time.monotonic() + FETCH_DEADLINE_S
    found = []
    try:
        with memory_apart(torch.device(device)):
            for reference in references:
                set_target_device_for_ref(reference, device)
                found.append(ray.get(reference, timeout=max(0.0, until - time.monotonic())))
        return found
    finally:
        _BOOKS.note(references)


def fetched(reply: Reply, get: Get) -> Reply:
    """Return a reply with the large tensors that its packets refer to."""
    large = iter(get([packet.reference for packet in reply.packets if isinstance(packet, Referred)]))
    packets = [
        Fetched(packet.header, packet.buffers, tuple(next(large))) if isinstance(packet, Referred) else packet
        for packet in reply.packets
    ]
    return replace(reply, packets=tuple(packets))


class DirectPort(RayPort):
    """Line to the outbox of a Ray actor, whose large tensors are fetched from its memory.

    Args:
        producer: handle of an actor with a method `take_referred(Take) -> Reply` and a concurrency group `io`, made
            with `enable_tensor_transport`.
        device: where the tensors are to arrive.
    """

    def __init__(self, producer: Any, device: str) -> None:
        super().__init__(producer, "take_referred")
        self._device = device
        self._num_failed = 0

    def __reduce__(self) -> tuple[Callable[..., DirectPort], tuple[Any, ...]]:
        return DirectPort, (self._producer, self._device)

    def _note(self, take: Take, call: Future[Reply]) -> None:
        if call.exception() is None and any(isinstance(packet, Referred) for packet in call.result().packets):
            _fetcher().submit(self._fetch, take, call.result())
        else:
            super()._note(take, call)

    def _fetch(self, take: Take, reply: Reply) -> None:
        try:
            found: Reply | Exception = fetched(reply, lambda references: read(references, self._device))
            self._num_failed = 0
        except Exception as error:
            found = self._failure(take, error)
        self._ended.put((take, found))

    def _failure(self, take: Take, error: Exception) -> Exception:
        """Return a reply that was lost: whether its producer lives is told by the next take."""
        self._num_failed += 1
        why = f"edge {take.edge}: tensors could not be fetched from their producer's memory ({last_line(error)})"
        if self._num_failed < MOST_FAILED:
            return LostReply(why)
        return EdgeError(f"{why}, {MOST_FAILED} times in a row; set placement.device_transport=host")


def prepare(device: str) -> None:
    """Make this process ready to keep and to fetch tensors of a device, and try it.

    Raises:
        UserError: NIXL is not installed here, or can't register the device's memory.
    """
    try:
        _share_agent()
        put([torch.zeros(1, device=device)])
    except Exception as error:
        raise UserError(
            f"placement.device_transport: got 'rdt', which does not work on {socket.gethostname()} with device "
            f"{device} ({last_line(error)}), expected a machine with NIXL; install unlocked[rdt] there, or set "
            f"placement.device_transport=host"
        ) from None


def _share_agent() -> None:
    """Make NIXL's agent of this process one for several threads.

    Ray makes one without locks. Here takes register memory in some threads while others fetch and free.
    """
    from ray.experimental.rdt.util import get_tensor_transport_manager

    nixl: Any = importlib.import_module("nixl._api")
    transport: Any = get_tensor_transport_manager("NIXL")
    if transport._nixl_agent is None:
        transport._backend = transport.select_backend()
        transport._nixl_agent = nixl.nixl_agent(
            uuid.uuid4().hex,
            nixl.nixl_agent_config(
                backends=[transport._backend], sync_mode=nixl.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
            ),
        )


class Books:
    """What Ray would keep for ever of every object that was fetched: where it was, and what its producer registered.

    Dropped here, but not at once: another reply may refer to the same object, and waits to be fetched.
    """

    def __init__(self, keep: int = 64) -> None:
        self._keep = keep
        self._fetched: OrderedDict[str, None] = OrderedDict()

    def note(self, references: list[Any]) -> None:
        """Note what was fetched last, and drop what was long ago."""
        for reference in references:
            self._fetched[reference.hex()] = None
            self._fetched.move_to_end(reference.hex())
        rdt = worker.global_worker.rdt_manager
        while len(self._fetched) > self._keep:
            name, _ = self._fetched.popitem(last=False)
            with rdt._lock:
                rdt._managed_rdt_metadata.pop(name, None)


_BOOKS = Books()


@lru_cache(maxsize=1)
def _fetcher() -> ThreadPoolExecutor:
    """Return the one thread in which this process fetches: Ray's books of other agents have no lock."""
    return ThreadPoolExecutor(1, "fetches")


def last_line(error: Exception) -> str:
    """Return what has failed: Ray's messages end with the first cause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")
