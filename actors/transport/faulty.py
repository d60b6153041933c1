"""Wraps any carrier and spoils named messages: drop, delay, duplicate, reorder, corrupt.

Every fault names a sequence number and fires once; `fired` lets a test assert that it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from actors.errors import CorruptMessage
from actors.transport.inbox import Port
from actors.transport.outbox import Reply, Take
from actors.transport.packet import Packet, read_header


@dataclass(frozen=True)
class Fault:
    """What happens to the message with this sequence number, the first time it passes."""

    sequence: int
    action: Literal["drop", "delay", "duplicate", "reorder", "corrupt_header", "corrupt_payload"]
    rounds: int = 3
    """For `delay` and `reorder`: after how many later collects the message arrives."""


class FaultyPort:
    """A port whose replies are spoiled as the faults say."""

    def __init__(self, port: Port, faults: Sequence[Fault]) -> None:
        self.port = port
        self.fired: list[Fault] = []
        self._faults = {fault.sequence: fault for fault in faults}
        self._held: list[tuple[int, Take, Reply]] = []

    def request(self, take: Take) -> None:
        """Pass the call on."""
        self.port.request(take)

    def collect(self, wait_s: float) -> list[tuple[Take, Reply | Exception]]:
        """Return the calls that ended, spoiled."""
        ended = self._released()
        for take, reply in self.port.collect(0.0 if ended else wait_s):
            if isinstance(reply, Reply):
                ended += self._spoil(take, reply)
            else:
                ended.append((take, reply))
        return ended

    def _released(self) -> list[tuple[Take, Reply | Exception]]:
        self._held = [(rounds - 1, take, reply) for rounds, take, reply in self._held]
        due = [(take, reply) for rounds, take, reply in self._held if rounds <= 0]
        self._held = [entry for entry in self._held if entry[0] > 0]
        return list(due)

    def _spoil(self, take: Take, reply: Reply) -> list[tuple[Take, Reply | Exception]]:
        packets: list[Packet] = []
        late = 0
        for packet in reply.packets:
            fault = self._fault_of(packet, take.edge)
            if fault is None:
                packets.append(packet)
                continue
            self.fired.append(fault)
            if fault.action in ("delay", "reorder"):
                late = max(late, fault.rounds)
                packets.append(packet)
            elif fault.action == "duplicate":
                packets += [packet, packet]
            elif fault.action != "drop":
                packets.append(_corrupt(packet, fault.action))
        spoiled = replace(reply, packets=tuple(packets))
        if late:
            self._held.append((late, take, spoiled))
            return []
        return [(take, spoiled)]

    def _fault_of(self, packet: Packet, edge: str) -> Fault | None:
        try:
            return self._faults.pop(read_header(packet.header, edge)["sequence"], None)
        except CorruptMessage:
            return None


def _corrupt(packet: Packet, action: str) -> Packet:
    if action == "corrupt_header" or not packet.buffers or not packet.buffers[0].nbytes:
        middle = len(packet.header) // 2
        header = bytearray(packet.header)
        header[middle] ^= 0x10
        return replace(packet, header=bytes(header))
    spoiled = np.array(packet.buffers[0])
    spoiled[spoiled.nbytes // 2] ^= 0x10
    return replace(packet, buffers=(spoiled, *packet.buffers[1:]))
