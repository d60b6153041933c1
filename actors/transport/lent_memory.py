"""Memory of a consumer that its producer, another process of this machine, writes messages into.

A message is then copied once, where a socket copies it into the kernel and out of it. The consumer makes a piece of
memory when a large message has come over the socket, lends it with a take, gets it back with the reply that says what
lies in it, and lends it again once nobody refers to its contents. A piece belongs to one line: a producer that was
given up can write only to what nobody will read. It has no name: nothing is left of it once no process has it.
"""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.transport.buffers import SMALLEST_BYTES
from actors.transport.frames import MOST_DESCRIPTORS

MOST_OF_A_SIZE = 64
"""Pieces that a consumer makes; what comes beyond them is sent over the socket."""
MOST_SIZES = 4
"""How many sizes a producer keeps pieces of."""
LEAST_IDLE, MOST_IDLE, MOST_IDLE_BYTES = 4, 8, 256 * 1024**2
"""Pieces of a size that a producer keeps, and bytes of them where they are more than the least: as many as a take may
be answered with, lest they are made again and again."""

News = tuple[list[list[int]], list[int]]
"""[number, size] of every piece that is lent for the first time, and the numbers of those that are lent again."""


class Lender:
    """The consumer's pieces; what was received may be let go of in any thread."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._memories: dict[int, Tensor] = {}
        self._counts: Counter[int] = Counter()
        self._lent: set[int] = set()
        self._new: list[tuple[int, int]] = []  # number, descriptor
        # Appended to by whoever lets go of a message, who may have been interrupted anywhere and can't wait for a lock.
        self._released: deque[int] = deque()
        self._next = 0

    def wanted(self, size: int) -> None:
        """Make a piece, since a message of this size came over the socket; none is made where that is not possible."""
        with self._changing:
            if size < SMALLEST_BYTES or self._counts[size] >= MOST_OF_A_SIZE or len(self._new) >= MOST_DESCRIPTORS:
                return
            try:
                descriptor, memory = _made(size)
            except (OSError, AttributeError):  # forbidden, or unknown to this Python
                return
            self._memories[self._next] = memory
            self._counts[size] += 1
            self._new.append((self._next, descriptor))
            self._next += 1

    def news(self) -> tuple[list[int], News]:
        """Return what goes out with a take: descriptors of new pieces, which the caller closes, and what it says."""
        with self._changing:
            new, self._new = self._new, []
            again = [self._released.popleft() for _ in range(len(self._released))]
            self._lent.update(again, (number for number, _ in new))
            sizes = [[number, len(self._memories[number])] for number, _ in new]
        return [descriptor for _, descriptor in new], (sizes, again)

    def received(self, number: int, size: int) -> np.ndarray:
        """Return what the producer has written to a piece, [size] bytes.

        Raises:
            ValueError: the producer has no such piece.
        """
        with self._changing:
            memory = self._memories.get(number)
            if memory is None or number not in self._lent or len(memory) != size:
                raise ValueError(f"a message of {size} bytes in piece {number}, which was not lent")
            self._lent.remove(number)
        array = memory.numpy()
        weakref.finalize(array, self._released.append, number).atexit = False
        return array

    def returned(self, numbers: Sequence[int]) -> None:
        """Forget pieces that the producer has no use for."""
        with self._changing:
            for number in numbers:
                if number in self._lent:
                    self._lent.remove(number)
                    self._counts[len(self._memories.pop(number))] -= 1

    def close(self) -> None:
        """Lend no more; what was received stays."""
        for descriptor in self.news()[0]:
            os.close(descriptor)
        with self._changing:
            self._memories.clear()
            self._lent.clear()


class Borrower:
    """A producer's view of the pieces that one consumer lends it."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._pieces: dict[int, np.ndarray] = {}
        self._free: OrderedDict[int, deque[int]] = OrderedDict()
        self._surplus: list[int] = []

    def learn(self, descriptors: Sequence[int], news: Any) -> None:
        """Take the news that came with a take; the descriptors are closed.

        Pieces for which there is no room, or whose descriptors got lost for the same reason, go back.

        Raises:
            ValueError, TypeError, LookupError: what came is not what `Lender.news` returns.
        """
        try:
            new, again = news
            if len(descriptors) > len(new):
                raise ValueError(f"{len(descriptors)} descriptors of {len(new)} pieces")
            found = [_tried(*one) for one in zip_longest(descriptors, new)]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        with self._changing:
            for (number, _), memory in zip(new, found, strict=True):
                if memory is None:
                    self._surplus.append(number)
                else:
                    self._pieces[number] = memory.numpy()
                    self._keep(number)
            for number in again:
                self._keep(number)

    def place(self, buffer: np.ndarray) -> int | None:
        """Copy [size] bytes to a piece and return its number; None if there is none of their size."""
        with self._changing:
            free = self._free.get(buffer.nbytes)
            if not free:
                return None
            self._free.move_to_end(buffer.nbytes)
            number = free.pop()  # what was read last is the nearest
        np.copyto(self._pieces[number], buffer)
        return number

    def surplus(self) -> list[int]:
        """Return the numbers of pieces that go back to the consumer unused."""
        with self._changing:
            surplus, self._surplus = self._surplus, []
        return surplus

    def _keep(self, number: int) -> None:
        size = self._pieces[number].nbytes
        free = self._free.setdefault(size, deque())
        free.append(number)
        if len(free) > min(MOST_IDLE, max(LEAST_IDLE, MOST_IDLE_BYTES // size)):
            self._give_back(free.popleft())
        if len(self._free) > MOST_SIZES:
            _, unused = self._free.popitem(last=False)
            for other in unused:
                self._give_back(other)

    def _give_back(self, number: int) -> None:
        del self._pieces[number]
        self._surplus.append(number)


def _made(size: int) -> tuple[int, Tensor]:
    """Return a descriptor of new memory whose size nobody can change, and the memory."""
    descriptor = os.memfd_create("unlocked", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, size)  # or writing to it, once memory is short, would end the producer
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _seals())
        return descriptor, _mapped(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise


def _tried(descriptor: int | None, new: Sequence[int]) -> Tensor | None:
    """Return the memory of a piece; None if there is no room for it."""
    _, size = new
    try:
        return None if descriptor is None else _mapped(descriptor, size)
    except OSError:
        return None


def _mapped(descriptor: int, size: int) -> Tensor:
    """Return the memory that a descriptor stands for, [size] bytes; it needs no descriptor then.

    Raises:
        OSError: it can't be mapped.
        ValueError: it has another size, or one that its maker can still change, on which writing would end the process.
    """
    is_fixed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _seals() == _seals()
    if os.fstat(descriptor).st_size != size or not is_fixed:
        raise ValueError(f"a piece of memory is not of {size} bytes that stay")
    try:
        return torch.from_file(f"/proc/self/fd/{descriptor}", shared=True, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise OSError(str(error)) from None


def _seals() -> int:
    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
