"""Frames on a socket: each arrives whole, with its own descriptors, however many wait behind it."""

import os
import socket
import threading

import numpy as np
import pytest

from actors.transport.frames import MAX_BODY_BYTES, MOST_DESCRIPTORS, body_of, body_with_descriptors, fill, send


@pytest.fixture
def line():
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.settimeout(20)
    with ours, theirs:
        yield ours, theirs


def described(number, count):
    """Return descriptors of files whose contents say which they are."""
    found = []
    for index in range(count):
        descriptor = os.memfd_create("frame")
        os.write(descriptor, f"{number} {index}".encode())
        found.append(descriptor)
    return found


def contents(descriptors):
    found = [os.pread(descriptor, 99, 0).decode() for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    return found


def test_frames_that_wait_keep_their_own_descriptors(line):
    ours, theirs = line
    counts = [0, 2, 1, 0, 0, MOST_DESCRIPTORS, 3, 0]
    for number, count in enumerate(counts):
        send(ours, [number, "x" * 50 * number], descriptors=described(number, count))
    for number, count in enumerate(counts):
        body, descriptors = body_with_descriptors(theirs)
        assert body == [number, "x" * 50 * number]
        assert all(not os.get_inheritable(descriptor) for descriptor in descriptors)
        assert contents(descriptors) == [f"{number} {index}" for index in range(count)]


def test_a_frame_larger_than_what_the_kernel_holds_arrives_with_what_follows_it(line):
    ours, theirs = line
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    buffers = [np.full(size, index, np.uint8) for index, size in enumerate((300_000, 0, 1, 70_001))]
    sender = threading.Thread(
        target=lambda: [send(ours, ["y" * 200_000, n], buffers, described(n, 1)) for n in range(3)], daemon=True
    )
    sender.start()
    for number in range(3):
        body, descriptors = body_with_descriptors(theirs)
        assert body == ["y" * 200_000, number] and contents(descriptors) == [f"{number} 0"]
        for index, expected in enumerate(buffers):
            got = np.full(expected.nbytes, 255, np.uint8)
            fill(theirs, got.data)
            assert (got == expected).all(), index
    sender.join(20)
    assert not sender.is_alive()


def test_descriptors_are_closed_here_also_if_nothing_can_be_sent(line):
    ours, theirs = line
    (sent,) = described(0, 1)
    theirs.close()
    with pytest.raises(OSError):
        send(ours, ["nobody"], descriptors=[sent])
    (unsent,) = described(0, 1)
    with pytest.raises(TypeError):
        send(ours, [object()], descriptors=[unsent])
    for descriptor in (sent, unsent):
        with pytest.raises(OSError):
            os.fstat(descriptor)


@pytest.mark.parametrize(
    "sent",
    [(MAX_BODY_BYTES + 1).to_bytes(4, "little"), b"\1\0\0\0\xc0", b"\1\0\0\0\xc1", b"\2\0"],
    ids=["too long", "no list", "no msgpack", "cut short"],
)
@pytest.mark.parametrize("read", [body_of, body_with_descriptors])
def test_what_is_no_frame_is_refused(line, sent, read):
    ours, theirs = line
    ours.sendall(sent)
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises((ValueError, TypeError, EOFError)):
        read(theirs)


def test_the_end_is_told_from_a_frame(line):
    ours, theirs = line
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        body_with_descriptors(theirs)
