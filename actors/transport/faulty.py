"""Wraps any carrier and spoils named messages: drop, delay, duplicate, reorder, corrupt.

Every fault names a sequence number and fires once; `fired` lets a test assert that it did.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from actors.errors import CorruptMessage
from actors.transport.inbox import Port
from actors.transport.outbox import Reply, Take
from actors.transport.packet import Opened, Packet, read_header

Action = Literal["drop", "delay", "duplicate", "reorder", "corrupt_header", "corrupt_payload"]
LATE: tuple[Action, ...] = ("delay", "reorder")
LOSSLESS: tuple[Action, ...] = (*LATE, "duplicate")


@dataclass(frozen=True)
class Fault:
    """What happens to the message with this sequence number, the first time it passes."""

    sequence: int
    action: Action
    rounds: int = 3
    """For `delay` and `reorder`: after how many later collects the message arrives."""
    seconds: float | None = None
    """Instead of `rounds`, after how long; `reorder` arrives as soon as a later message has overtaken it."""


def random_faults(count: int, share: float, seed: int, *, longest_s: float) -> list[Fault]:
    """Name many messages at random: delays, duplicates and reorderings, which lose nothing.

    Args:
        count: sequence numbers to choose from, 0 to count - 1.
        share: of them that are spoiled.
        seed: equal seeds choose the same.
        longest_s: of a delay, in seconds; delays are even between 0 and this.
    """
    draw = random.Random(seed)
    spoiled = [sequence for sequence in range(count) if draw.random() < share]
    return [Fault(sequence, draw.choice(LOSSLESS), seconds=draw.uniform(0.0, longest_s)) for sequence in spoiled]


@dataclass
class _Held:
    """A reply that arrives later. `last` is the largest sequence number in it."""

    take: Take
    reply: Reply
    last: int
    rounds: int
    until: float | None
    waits_for_later: bool
    is_overtaken: bool = False

    def is_due(self, now: float) -> bool:
        """Whether it arrives in this round."""
        if self.until is None:
            return self.rounds <= 0
        return now >= self.until or (self.waits_for_later and self.is_overtaken)


class FaultyPort:
    """A port whose replies are spoiled as the faults say.

    `fired`: the faults that have happened. `num_overtaken`: late replies that a later one has overtaken.
    """

    def __init__(self, port: Port, faults: Sequence[Fault]) -> None:
        self.port = port
        self.fired: list[Fault] = []
        self.num_overtaken = 0
        self._faults = {fault.sequence: fault for fault in faults}
        self._held: list[_Held] = []

    def request(self, take: Take) -> None:
        """Pass the call on."""
        self.port.request(take)

    def collect(self, wait_s: float) -> list[tuple[Take, Reply | Exception]]:
        """Return the calls that ended, spoiled."""
        ended = self._released()
        for take, reply in self._collected(0.0 if ended else wait_s):
            if isinstance(reply, Reply):
                ended += self._spoil(take, reply)
            else:
                ended.append((take, reply))
        return ended

    def _collected(self, wait_s: float) -> list[tuple[Take, Reply | Exception]]:
        """Wait no longer than until the first held reply is due."""
        due = min((held.until for held in self._held if held.until is not None), default=math.inf)
        until = min(time.monotonic() + wait_s, due)
        found = self.port.collect(max(0.0, until - time.monotonic()) if wait_s else 0.0)
        if not found and wait_s and self._held:
            time.sleep(max(0.0, until - time.monotonic()))  # every call may be held here: the port returns at once
        return found

    def _released(self) -> list[tuple[Take, Reply | Exception]]:
        now = time.monotonic()
        for held in self._held:
            held.rounds -= 1
        due = [held for held in self._held if held.is_due(now)]
        self._held = [held for held in self._held if not held.is_due(now)]
        self.num_overtaken += sum(held.is_overtaken for held in due)
        return [(held.take, held.reply) for held in due]

    def _spoil(self, take: Take, reply: Reply) -> list[tuple[Take, Reply | Exception]]:
        packets: list[Packet] = []
        late: list[Fault] = []
        last = -1
        for packet in reply.packets:
            sequence = _sequence(packet, take.edge)
            fault = self._faults.pop(sequence, None)
            last = max(last, sequence)
            packets += self._spoiled(packet, fault)
            late += [fault] if fault is not None and fault.action in LATE else []
        spoiled = replace(reply, packets=tuple(packets))
        if late:
            self._held.append(_held(take, spoiled, last, late))
            return []
        for held in self._held:
            held.is_overtaken = held.is_overtaken or last > held.last
        return [(take, spoiled)]

    def _spoiled(self, packet: Packet, fault: Fault | None) -> list[Packet]:
        """Return what is left of a packet, or its copies."""
        if fault is None:
            return [packet]
        self.fired.append(fault)
        if fault.action in LATE:
            return [packet]
        if fault.action == "duplicate":
            return [packet, packet]
        return [] if fault.action == "drop" else [_corrupt(packet, fault.action)]


def _held(take: Take, reply: Reply, last: int, faults: Sequence[Fault]) -> _Held:
    """Hold a reply as long as the longest of its faults says."""
    seconds = [fault.seconds for fault in faults if fault.seconds is not None]
    return _Held(
        take, reply, last,
        rounds=max(fault.rounds for fault in faults),
        until=time.monotonic() + max(seconds) if len(seconds) == len(faults) else None,
        waits_for_later=all(fault.action == "reorder" for fault in faults),
    )  # fmt: skip


def _sequence(packet: Packet, edge: str) -> int:
    """Return a packet's sequence number, -1 if its header is corrupt."""
    try:
        return read_header(packet.header, edge)["sequence"]
    except CorruptMessage:
        return -1


def _corrupt(packet: Packet, action: str) -> Packet:
    if isinstance(packet, Opened):  # as if it had come so
        packet = Packet(packet.header, packet.buffers)
    if action == "corrupt_header" or not packet.buffers or not packet.buffers[0].nbytes:
        middle = len(packet.header) // 2
        header = bytearray(packet.header)
        header[middle] ^= 0x10
        return replace(packet, header=bytes(header))
    spoiled = np.array(packet.buffers[0])
    spoiled[spoiled.nbytes // 2] ^= 0x10
    return replace(packet, buffers=(spoiled, *packet.buffers[1:]))
