"""Carrier between processes of one machine: takes and replies are frames on a socket.

Takes go one way and replies the other, as frames (`frames.py`); a reply's buffers follow it, or lie in memory that
the consumer has lent (`lent_memory.py`). The socket has an abstract address of Linux: nothing of it is left when its
process dies, and no other network namespace reaches it. Both ends refuse a peer of another user.

What a reply holds is lost with a producer that dies while it sends it: what the consumer has not received whole is
asked for again from the producer's next life.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from actors.errors import CorruptMessage, EdgeError, LostReply, MispairedMessage, SessionRefused
from actors.priority import yield_to_computing
from actors.transport.buffers import Buffers
from actors.transport.frames import body_of, body_with_descriptors, fill, send
from actors.transport.inbox import Port
from actors.transport.lent_memory import Borrower, Lender
from actors.transport.outbox import Reply, Take
from actors.transport.packet import MAX_TENSOR_BYTES, Packet

MOST_TAKES = 8
"""Of one consumer that are answered at the same time; each waits for messages in a thread of its own."""
SEND_BUFFER_BYTES = 4 * 1024**2
"""Of a line: a small one makes both ends take turns for one message."""
_BROKEN = (OSError, EOFError, ValueError, TypeError, LookupError)
"""What reading a frame raises where the other end is gone or sends something else: the line is given up."""
_ERRORS = {kind.__name__: kind for kind in (EdgeError, CorruptMessage, LostReply, MispairedMessage, SessionRefused)}


class TakeServer:
    """Answers the takes of other processes of this machine, until this process ends.

    Args:
        take: answers one; called from several threads.

    `num_lines` counts the consumers that it has been connected with, `num_placed` what was written to their memory.
    """

    def __init__(self, take: Callable[[Take], Reply]) -> None:
        self._take = take
        self.num_lines = self.num_placed = 0
        self._counting = threading.Lock()
        self.address = f"unlocked-{os.getpid()}-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{self.address}")
        self._listener.listen()
        _in_background(self._accept)

    def close(self) -> None:
        """Serve no further consumer."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return  # closed
            if _is_own(line):
                self.num_lines += 1
                line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # the kernel takes what it may
                _in_background(self._serve, line)
            else:
                line.close()

    def _serve(self, line: socket.socket) -> None:
        """Read the takes of a consumer; one that must wait for messages has a thread of its own."""
        consumer = _Consumer(line)
        with line, ThreadPoolExecutor(MOST_TAKES, initializer=yield_to_computing) as waiting:
            try:
                while True:
                    number, take = consumer.next_take()
                    if not self._answer(consumer, number, replace(take, wait_s=0.0), is_last=False):
                        waiting.submit(self._answer, consumer, number, take)
            except _BROKEN:
                return  # the consumer is gone

    def _answer(self, consumer: _Consumer, number: int, take: Take, *, is_last: bool = True) -> bool:
        """Send what a take is answered with; False if nothing is there yet and another try will be made."""
        try:
            answer = self._take(take)
            if take.limit and not answer.packets and answer.end is None and not is_last:
                return False
            body, inline = consumer.laid_out(number, answer)
            num_placed = sum(len(packet.buffers) for packet in answer.packets) - len(inline)
        except Exception as error:
            said = error if isinstance(error, EdgeError) else EdgeError(f"the producer failed: {error}")
            body, inline, num_placed = [number, type(said).__name__, str(said)], [], 0
        consumer.send(body, inline)
        with self._counting:
            self.num_placed += num_placed
        return True


class _Consumer:
    """The line to a consumer, as its producer sees it."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._sending = threading.Lock()
        self._borrower = Borrower()

    def next_take(self) -> tuple[int, Take]:
        """Return the next take and its number."""
        body, descriptors = body_with_descriptors(self._line)
        self._borrower.learn(descriptors, body.pop() if body else None)
        number, edge, session, *fields = body
        return number, Take(edge, tuple(session), *fields)

    def send(self, body: list[Any], inline: list[np.ndarray]) -> None:
        """Send what a take is answered with."""
        try:
            with self._sending:
                send(self._line, body, inline)
        except OSError:
            pass  # nobody waits for it any more

    def laid_out(self, number: int, reply: Reply) -> tuple[list[Any], list[np.ndarray]]:
        """Return a reply's body, and the buffers that follow it because the consumer has lent nothing for them."""
        packets, inline = [], []
        for packet in reply.packets:
            entries = []
            for buffer in packet.buffers:
                piece = self._borrower.place(buffer)
                entries.append([buffer.nbytes, piece])
                if piece is None:
                    inline.append(buffer)
            packets.append([packet.header, entries])
        rest = [reply.handed, reply.version, reply.end, reply.first, reply.promised]
        return [number, self._borrower.surplus(), reply.session, packets, *rest], inline


class SameNodePort:
    """Line to the outboxes of another process of this machine.

    Args:
        address: of its `TakeServer`.
        otherwise: a line that is used where the address can't be reached from here.
    """

    def __init__(self, address: str, otherwise: Port) -> None:
        self._address, self._otherwise = address, otherwise
        self._line: _Line | None = None
        self._is_unreachable = False
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., SameNodePort], tuple[Any, ...]]:
        return SameNodePort, (self._address, self._otherwise)

    def __del__(self) -> None:
        if self._line is not None:
            self._line.close()

    def request(self, take: Take) -> None:
        """Start the call."""
        with self._opening:
            if self._line is None and not self._is_unreachable:
                self._line = _opened(self._address)
                self._is_unreachable = self._line is None
        if self._line is None:
            self._otherwise.request(take)
        else:
            self._line.request(take)

    def collect(self, wait_s: float) -> list[tuple[Take, Reply | Exception]]:
        """Return the calls that ended, waiting up to `wait_s` seconds for the first."""
        return self._otherwise.collect(wait_s) if self._line is None else self._line.collect(wait_s)


class _Line:
    """A connection; a thread of its own reads what comes, so that replies arrive while the program computes."""

    def __init__(self, line: socket.socket) -> None:
        self._socket = line
        self._changing, self._sending = threading.Lock(), threading.Lock()
        self._numbers = itertools.count()
        self._calls: dict[int, Take] = {}
        self._is_gone = False
        self._lender = Lender()
        self._ended: SimpleQueue[tuple[Take, Reply | Exception]] = SimpleQueue()
        _in_background(self._read)

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other end was first

    def request(self, take: Take) -> None:
        with self._changing:
            number = next(self._numbers)
            self._calls[number] = take
        body = [
            number, take.edge, take.session, take.received, take.durable, take.oldest_trainable, take.limit, take.wait_s
        ]  # fmt: skip
        try:
            with self._sending:
                descriptors, news = self._lender.news()
                send(self._socket, [*body, news], descriptors=descriptors)
        except OSError:
            self._fail()
        if self._is_gone:
            self._fail()  # the reader may have looked before this call was noted

    def collect(self, wait_s: float) -> list[tuple[Take, Reply | Exception]]:
        found: list[tuple[Take, Reply | Exception]] = []
        try:
            found.append(self._ended.get(timeout=wait_s) if wait_s > 0.0 else self._ended.get_nowait())
            while True:
                found.append(self._ended.get_nowait())
        except Empty:
            return found

    def _read(self) -> None:
        buffers = Buffers()
        try:
            while True:
                number, reply = self._reply(buffers)
                with self._changing:
                    take = self._calls.pop(number)
                self._ended.put((take, reply.opened(take.edge) if isinstance(reply, Reply) else reply))
                del reply  # the next one may be long in coming, and this one's memory could be lent again
        except _BROKEN:
            self._is_gone = True
            self._lender.close()
            self._fail()

    def _reply(self, buffers: Buffers) -> tuple[int, Reply | Exception]:
        number, *fields = body_of(self._socket)
        if len(fields) == 2:
            return number, _ERRORS.get(fields[0], EdgeError)(fields[1])
        surplus, session, packets, *rest = fields
        self._lender.returned(surplus)
        received = tuple(
            Packet(header, tuple(self._buffer(size, piece, buffers) for size, piece in sizes))
            for header, sizes in packets
        )
        return number, Reply(tuple(session), received, *rest)

    def _buffer(self, size: int, piece: int | None, buffers: Buffers) -> np.ndarray:
        """Return [size] bytes: what lies in a piece of lent memory, or what comes next."""
        if piece is not None:
            return self._lender.received(piece, size)
        if size > MAX_TENSOR_BYTES:
            raise ValueError(f"a buffer of {size} bytes, expected {MAX_TENSOR_BYTES} at most")
        found = buffers.take(size)
        fill(self._socket, found.data)
        self._lender.wanted(size)
        return found

    def _fail(self) -> None:
        """End every call: whoever waits for one learns that the producer is gone."""
        with self._changing:
            failed, self._calls = self._calls, {}
        for take in failed.values():
            self._ended.put((take, ConnectionError("the producer's process is gone: its socket is closed")))


def _opened(address: str) -> _Line | None:
    """Return a connection; None where nobody of this user listens at the address."""
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(f"\0{address}")
    except OSError:
        line.close()
        return None
    if not _is_own(line):
        line.close()
        return None
    return _Line(line)


def _is_own(line: socket.socket) -> bool:
    """Whether the process at the other end belongs to the same user."""
    _, user, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return user == os.getuid()


def _in_background(target: Callable[..., None], *arguments: Any) -> None:
    def served() -> None:
        yield_to_computing()
        target(*arguments)

    threading.Thread(target=served, daemon=True, name="takes").start()
