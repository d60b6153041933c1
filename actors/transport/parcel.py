"""A message in an outbox: packed when it is first taken, in the thread that takes it, while its producer computes on.

What lies on a device begins its way to the host at once, unless its consumer is in the same process: to that one it is
handed as it is. A consumer that fetches large tensors by itself gets references to them instead (`direct.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from actors.messages import Message, num_bytes
from actors.transport.codec import PLAIN
from actors.transport.packet import Opened, Packet, Referred, check_dtypes, laid_flat, pack, read_header, unpack
from actors.transport.staging import STAGED_BYTES, begin_leaving, is_on_device

Put = Callable[[list[Tensor]], Any]
"""Keeps tensors for others to fetch, and returns a reference: they can be fetched as long as somebody holds it."""


@dataclass(frozen=True)
class Handed(Packet):
    """A message whose tensors stay on their device; nothing travels that could be spoiled on the way."""

    message: Message

    @classmethod
    def of(cls, message: Message) -> Handed:
        """Hand a message over."""
        return cls(b"", (), message)

    @property
    def num_bytes(self) -> int:
        """Payload size in bytes."""
        return num_bytes(self.message.tensors)


class Parcel:
    """One message of an edge.

    Args:
        message: with its sequence number; its tensors are not written to any more.
        run, edge: written into the header.
        codec: what activations and feedback travel as; under any but the plain one it is packed at once.
        leaves: whether the consumer is known to be in another process.

    Raises:
        EdgeError: a tensor's dtype can't travel.
    """

    def __init__(self, message: Message, *, run: str, edge: str, codec: str = PLAIN, leaves: bool = True) -> None:
        check_dtypes(message, edge)
        self._message: Message | None = message
        self._run, self._edge, self._codec = run, edge, codec
        self._packing = threading.Lock()
        self._packet: Packet | None = None
        self._referred: Referred | None = None
        self._arrived: Callable[[], Mapping[str, Tensor]] | None = None
        if codec != PLAIN:
            self.packet()
        elif leaves and is_on_device(message.tensors):
            self._arrived = begin_leaving(message.tensors)
        self.num_bytes = num_bytes(message.tensors) if self._packet is None else self._packet.num_bytes

    def packet(self) -> Packet:
        """Return it packed; the first call waits for what is still on its way to the host, and lets go of the rest."""
        with self._packing:
            if self._message is not None:
                tensors = self._message.tensors
                if is_on_device(tensors):
                    tensors = (self._arrived or begin_leaving(tensors))()
                self._packet = pack(
                    replace(self._message, tensors=tensors), run=self._run, edge=self._edge, codec=self._codec
                )
                self._message = self._arrived = None
            assert self._packet is not None
            return self._packet

    def handed(self) -> Packet:
        """Return it for a consumer in this process: as it is if it lies on a device."""
        with self._packing:
            if self._message is not None and is_on_device(self._message.tensors):
                return Handed.of(self._message)
        return self.packet()

    def referred(self, put: Put, above: int = STAGED_BYTES) -> Packet:
        """Return it for a consumer that fetches tensors of more than `above` bytes: those stay where they lie.

        What has been packed goes as it was packed. The message stays too, since a snapshot may want it packed.
        """
        with self._packing:
            if self._referred is None and self._message is not None:
                self._referred = self._left_behind(self._message, put, above)
            if self._referred is not None:
                return self._referred
        return self.packet()

    def _left_behind(self, message: Message, put: Put, above: int) -> Referred | None:
        large = {name: tensor for name, tensor in message.tensors.items() if tensor.nbytes > above}
        if is_on_device(large):  # those of one reference must lie on devices of one kind
            large = {name: tensor for name, tensor in large.items() if tensor.device.type != "cpu"}
        if not large:
            return None
        packet = pack(message, run=self._run, edge=self._edge, beside=large)
        return Referred(packet.header, packet.buffers, put([_alone(laid_flat(tensor)) for tensor in large.values()]))


def _alone(tensor: Tensor) -> Tensor:
    """Return it with memory of its own: all of a tensor's memory is registered, of which it may be a small part."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


@dataclass(frozen=True)
class Arrived:
    """What a consumer has got and not yet handed to its program, with its header read."""

    packet: Packet
    sequence: int
    header: Mapping[str, Any]

    @classmethod
    def read(cls, packet: Packet, edge: str) -> Arrived:
        """Read the header.

        Raises:
            CorruptMessage: see `read_header`.
        """
        if isinstance(packet, Handed):
            return cls(packet, packet.message.sequence, {})
        header = packet.fields if isinstance(packet, Opened) else read_header(packet.header, edge)
        return cls(packet, header["sequence"], header)

    def opened(self, run: str, edge: str) -> Message:
        """Return its message.

        Raises:
            CorruptMessage: see `unpack`.
        """
        if isinstance(self.packet, Handed):
            return self.packet.message
        return unpack(self.packet, run=run, edge=edge, header=self.header)
