"""Memory that a consumer lends its producer: what is written there arrives, and nothing else is ever written to."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.transport import lent_memory
from actors.transport.buffers import SMALLEST_BYTES
from actors.transport.frames import MOST_DESCRIPTORS
from actors.transport.lent_memory import MOST_IDLE, MOST_OF_A_SIZE, MOST_SIZES, Borrower, Lender

SIZE = 2 * SMALLEST_BYTES


def tell(lender, borrower):
    """Carry the news of a take; the other process gets descriptors of its own."""
    descriptors, news = lender.news()
    copies = [os.dup(descriptor) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    borrower.learn(copies, news)
    return news


def filled(value, size=SIZE):
    return np.full(size, value, np.uint8)


def carried(lender, borrower, value, size=SIZE):
    """Carry a message, over the socket if nothing is lent for it; None then."""
    number = borrower.place(filled(value, size))
    if number is None:
        lender.wanted(size)
        return None
    return lender.received(number, size)


@pytest.fixture
def pair():
    lender, borrower = Lender(), Borrower()
    yield lender, borrower
    lender.close()


def num_mapped():
    return Path("/proc/self/maps").read_text().count("memfd:unlocked")


def num_open():
    return sum("memfd:unlocked" in os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))


def test_the_first_message_makes_a_piece_for_those_that_follow(pair):
    lender, borrower = pair
    assert carried(lender, borrower, 1) is None
    assert tell(lender, borrower) == ([[0, SIZE]], [])
    got = carried(lender, borrower, 2)
    assert got is not None and got.dtype == np.uint8 and got.shape == (SIZE,) and (got == 2).all()
    assert got.ctypes.data % 64 == 0


def test_a_piece_is_lent_again_once_nobody_refers_to_what_it_shows(pair):
    lender, borrower = pair
    lender.wanted(SIZE)
    tell(lender, borrower)
    tensor = torch.from_numpy(carried(lender, borrower, 3)).view(torch.float32)[1:]
    assert tell(lender, borrower) == ([], []) and borrower.place(filled(4)) is None, "it is still in use"
    assert (tensor.view(torch.uint8) == 3).all()
    del tensor
    assert tell(lender, borrower) == ([], [0])
    assert (carried(lender, borrower, 5) == 5).all()


def test_messages_in_use_are_never_written_to(pair):
    lender, borrower = pair
    held, over_the_socket = [], 0
    for value in range(200):
        got = carried(lender, borrower, value)
        if got is None:
            over_the_socket += 1
        else:
            held.append((value, got))
        if value % 7 == 0:
            del held[::2]
        if value % 3 == 0:
            tell(lender, borrower)
        assert all((array == expected).all() for expected, array in held)
    assert 0 < over_the_socket < 100


def test_messages_of_another_size_do_not_go_there(pair):
    lender, borrower = pair
    lender.wanted(SIZE)
    tell(lender, borrower)
    assert borrower.place(filled(1, SIZE - 1)) is None and borrower.place(filled(1, SIZE + 1)) is None
    assert borrower.place(filled(1)) == 0


def test_small_messages_make_no_piece(pair):
    lender, borrower = pair
    lender.wanted(SMALLEST_BYTES - 1)
    assert tell(lender, borrower) == ([], [])


def test_as_many_pieces_are_made_as_messages_are_held_and_no_more_than_a_bound(pair):
    lender, borrower = pair
    held = []
    for _ in range(3 * MOST_OF_A_SIZE):
        held.append(carried(lender, borrower, 1, SMALLEST_BYTES))
        tell(lender, borrower)
    assert sum(one is not None for one in held) == MOST_OF_A_SIZE
    for _ in range(2 * MOST_DESCRIPTORS):
        lender.wanted(SIZE)
    assert len(tell(lender, borrower)[0]) == MOST_DESCRIPTORS, "as many as one take carries"


def test_pieces_that_a_producer_has_no_use_for_go_back_and_their_memory_with_them(pair):
    lender, borrower = pair
    before = num_mapped()
    for _ in range(MOST_DESCRIPTORS):
        lender.wanted(SIZE)
    tell(lender, borrower)
    assert num_mapped() - before == MOST_DESCRIPTORS + MOST_IDLE, "more than that a producer does not keep"
    lender.returned(borrower.surplus())
    assert num_mapped() - before == 2 * MOST_IDLE, "in this process both ends see each"
    assert borrower.surplus() == []


def test_sizes_that_came_long_ago_are_given_up(pair):
    lender, borrower = pair
    sizes = [SIZE + 4096 * number for number in range(MOST_SIZES + 1)]
    for size in sizes:
        lender.wanted(size)
        tell(lender, borrower)
    assert [borrower.place(filled(1, size)) is None for size in sizes] == [True] + [False] * MOST_SIZES
    lender.returned(borrower.surplus())
    lender.wanted(sizes[0])
    assert tell(lender, borrower)[0] == [[MOST_SIZES + 1, sizes[0]]]


def test_memory_of_large_messages_is_bounded_by_its_bytes(pair, monkeypatch):
    monkeypatch.setattr(lent_memory, "MOST_IDLE_BYTES", 3 * SIZE)
    lender, borrower = pair
    for _ in range(6):
        lender.wanted(SIZE)
    tell(lender, borrower)
    assert len(borrower.surplus()) == 2


@pytest.mark.parametrize("number", [0, 1, 7], ids=["in use", "not lent yet", "unknown"])
def test_what_was_not_lent_is_refused(pair, number):
    lender, borrower = pair
    lender.wanted(SIZE)
    tell(lender, borrower)
    held = carried(lender, borrower, 1)
    lender.wanted(SIZE)
    with pytest.raises(ValueError, match=f"piece {number}, which was not lent"):
        lender.received(number, SIZE)
    assert (held == 1).all()


def test_another_size_than_was_lent_is_refused(pair):
    lender, borrower = pair
    lender.wanted(SIZE)
    tell(lender, borrower)
    with pytest.raises(ValueError, match="not lent"):
        lender.received(0, SIZE - 1)


def test_pieces_that_are_in_use_can_t_be_given_back(pair):
    lender, borrower = pair
    lender.wanted(SIZE)
    tell(lender, borrower)
    held = carried(lender, borrower, 1)
    lender.returned([0, 99])
    del held
    assert tell(lender, borrower) == ([], [0])


def test_what_was_received_outlives_both_ends():
    lender, borrower = Lender(), Borrower()
    lender.wanted(SIZE)
    tell(lender, borrower)
    got = torch.from_numpy(carried(lender, borrower, 6))
    lender.close()
    del lender, borrower
    assert (got == 6).all()


def unsealed():
    descriptor = os.memfd_create("unlocked", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, SIZE)
    return descriptor


@pytest.mark.parametrize(
    ("make", "new"),
    [
        (unsealed, [[0, SIZE]]),
        (lambda: lent_memory._made(SIZE)[0], [[0, 2 * SIZE]]),
        (lambda: os.pipe()[0], [[0, SIZE]]),
        (lambda: lent_memory._made(SIZE)[0], []),
        (lambda: lent_memory._made(SIZE)[0], [["?", SIZE, 1]]),
    ],
    ids=["its maker can shrink it", "another size", "no memory", "nothing said of it", "something else said"],
)
def test_a_producer_refuses_what_is_no_piece_and_keeps_no_descriptor(make, new):
    descriptor = make()
    borrower = Borrower()
    with suppress(ValueError, TypeError):
        borrower.learn([descriptor], (new, []))
    with pytest.raises(OSError):
        os.fstat(descriptor)
    assert borrower.place(filled(1)) is None and borrower.surplus() in ([], [0])


def test_a_producer_refuses_a_piece_that_it_never_had():
    with pytest.raises(LookupError):
        Borrower().learn([], ([], [3]))


def forbid(monkeypatch):
    def forbidden(*arguments):
        raise PermissionError("seccomp")

    monkeypatch.setattr(os, "memfd_create", forbidden)


@pytest.mark.parametrize(
    "prevent", [forbid, lambda monkeypatch: monkeypatch.delattr(os, "memfd_create")], ids=["forbidden", "unknown"]
)
def test_where_no_memory_can_be_made_all_goes_over_the_socket(pair, monkeypatch, prevent):
    prevent(monkeypatch)
    lender, borrower = pair
    assert carried(lender, borrower, 1) is None
    assert tell(lender, borrower) == ([], [])


@pytest.mark.parametrize("num_lost", [1, 2])
def test_pieces_whose_descriptors_got_lost_go_back(pair, num_lost):
    lender, borrower = pair
    for _ in range(2):
        lender.wanted(SIZE)
    descriptors, news = lender.news()
    for lost in descriptors[2 - num_lost :]:
        os.close(lost)
    borrower.learn(descriptors[: 2 - num_lost], news)
    assert borrower.surplus() == [0, 1][2 - num_lost :]
    assert [borrower.place(filled(1)) is None for _ in range(2)] == [False, True] if num_lost == 1 else [True, True]


def test_pieces_that_can_t_be_mapped_go_back(pair, monkeypatch):
    lender, borrower = pair
    lender.wanted(SIZE)
    monkeypatch.setattr(torch, "from_file", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no room")))
    tell(lender, borrower)
    assert borrower.surplus() == [0] and borrower.place(filled(1)) is None and num_open() == 0


def test_a_line_that_ends_leaves_no_descriptor():
    before = num_open()
    lender = Lender()
    lender.wanted(SIZE)
    assert num_open() == before + 1
    lender.close()
    assert num_open() == before
