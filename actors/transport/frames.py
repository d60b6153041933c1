"""Frames on a socket between processes of one machine: a body in msgpack, and what travels behind and beside it.

A frame is the length of its body, the body, and buffers whose lengths follow from the body. Nothing is ever unpickled.
Reading raises OSError, EOFError, ValueError or TypeError where the other end is gone or sends something else.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import msgpack
import numpy as np

from actors.transport.packet import MAX_HEADER_BYTES

MAX_BODY_BYTES = 256 * MAX_HEADER_BYTES
MOST_DESCRIPTORS = 16
_LENGTH = struct.Struct("<I")
_DESCRIPTOR = array.array("i")


def send(
    line: socket.socket, body: list[Any], buffers: Iterable[np.ndarray] = (), descriptors: Sequence[int] = ()
) -> None:
    """Send a frame, and descriptors with it, which are closed here."""
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        packed = msgpack.packb(body)
        assert packed is not None
        views = [memoryview(_LENGTH.pack(len(packed)) + packed), *(buffer.data for buffer in buffers if buffer.nbytes)]
        while views:
            sent, beside = line.sendmsg(views, beside), []
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def body_with_descriptors(line: socket.socket) -> tuple[list[Any], list[int]]:
    """Return the body of the next frame, and the descriptors that came with it, `MOST_DESCRIPTORS` at most.

    The last ones are missing where this process may open no more.
    """
    room = socket.CMSG_LEN(MOST_DESCRIPTORS * _DESCRIPTOR.itemsize)
    begun, beside, _, _ = line.recvmsg(_LENGTH.size, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = [descriptor for _, kind, sent in beside if kind == socket.SCM_RIGHTS for descriptor in _whole(sent)]
    if not begun:
        raise EOFError("the other end is closed")
    try:
        return body_of(line, begun), descriptors
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _whole(sent: bytes) -> array.array[int]:
    return array.array("i", sent[: len(sent) - len(sent) % _DESCRIPTOR.itemsize])


def body_of(line: socket.socket, begun: bytes = b"") -> list[Any]:
    """Return the body of the next frame, whose first bytes may have been read."""
    (length,) = _LENGTH.unpack(begun + _bytes(line, _LENGTH.size - len(begun)))
    if length > MAX_BODY_BYTES:
        raise ValueError(f"a frame of {length} bytes, expected {MAX_BODY_BYTES} at most")
    body = msgpack.unpackb(_bytes(line, length), max_ext_len=0)
    if not isinstance(body, list):
        raise TypeError(f"a frame of {type(body).__name__}, expected a list")
    return body


def _bytes(line: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    fill(line, memoryview(found))
    return found


def fill(line: socket.socket, view: memoryview) -> None:
    """Read what comes next into a view, as many bytes as it has."""
    while len(view):
        count = line.recv_into(view, len(view), socket.MSG_WAITALL)
        if count == 0:
            raise EOFError("the other end is closed")
        view = view[count:]
