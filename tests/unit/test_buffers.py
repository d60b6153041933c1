import gc

import numpy as np
import pytest
import torch

from actors.transport.buffers import MOST_FREE, MOST_SIZES, SMALLEST_BYTES, Buffers


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def test_memory_is_given_out_again_once_nobody_refers_to_it():
    buffers = Buffers()
    first = buffers.take(SMALLEST_BYTES)
    where = address(first)
    del first
    assert address(buffers.take(SMALLEST_BYTES)) == where


def test_memory_that_a_tensor_still_shows_is_not_given_out():
    buffers = Buffers()
    tensor = torch.from_numpy(buffers.take(SMALLEST_BYTES)).view(torch.float32)[1:]
    where = tensor.data_ptr() - 4
    assert address(buffers.take(SMALLEST_BYTES)) != where
    del tensor
    assert where in {address(array) for array in [buffers.take(SMALLEST_BYTES) for _ in range(2)]}


@pytest.mark.parametrize("size", [1, SMALLEST_BYTES - 1, SMALLEST_BYTES, SMALLEST_BYTES + 1])
def test_what_is_given_out_is_as_long_as_was_asked_for_and_can_be_written_to(size):
    array = Buffers().take(size)
    array[:] = 7
    assert array.dtype == np.uint8 and array.shape == (size,) and address(array) % 64 == 0


@pytest.fixture
def made(monkeypatch):
    """The sizes of what is newly made."""
    sizes: list[int] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, **keywords: sizes.append(size) or empty(size, **keywords))
    return sizes


def test_buffers_of_many_messages_are_not_all_kept(made):
    buffers = Buffers()
    for _ in range(2):
        taken = [buffers.take(SMALLEST_BYTES) for _ in range(2 * MOST_FREE)]
        taken.clear()
    assert len(made) == 2 * MOST_FREE + MOST_FREE


def test_sizes_that_came_long_ago_are_forgotten(made):
    buffers = Buffers()
    sizes = range(SMALLEST_BYTES, SMALLEST_BYTES + 2 * MOST_SIZES)
    for size in (*sizes, *reversed(sizes)):
        buffers.take(size)
    assert made == [*sizes, *reversed(sizes[:MOST_SIZES])]


def test_memory_may_outlive_who_gave_it_out():
    array = Buffers().take(SMALLEST_BYTES)
    array[:] = 1
    gc.collect()
    assert array.sum() == SMALLEST_BYTES
