import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import UserError
from actors.networks.cuts import cut_layers, even_cuts

NAMES = ["conv1", "norm1", "relu1", "pool1", "conv2", "output"]


@given(st.integers(1, 60).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size))))
def test_an_even_cut_keeps_the_order_covers_every_layer_and_is_even(size_and_blocks):
    size, num_blocks = size_and_blocks
    names = [f"layer{index}" for index in range(size)]
    blocks = cut_layers(names, num_blocks, None)
    sizes = [len(block) for block in blocks]
    assert len(blocks) == num_blocks
    assert list(itertools.chain.from_iterable(blocks)) == names
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@given(st.sets(st.integers(1, 19)))
def test_a_cut_by_hand_starts_a_block_at_every_named_layer(positions):
    names = [f"layer{index}" for index in range(20)]
    cuts = [names[position] for position in sorted(positions)]
    blocks = cut_layers(names, None, cuts)
    assert [block[0] for block in blocks] == [names[0], *cuts]
    assert list(itertools.chain.from_iterable(blocks)) == names


@given(st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size))))
def test_even_cuts_given_by_hand_make_the_same_blocks(size_and_blocks):
    size, num_blocks = size_and_blocks
    names = [f"layer{index}" for index in range(size)]
    by_hand = cut_layers(names, None, even_cuts(names, num_blocks))
    assert by_hand == cut_layers(names, num_blocks, None)


def test_without_blocks_and_cuts_the_network_is_one_block():
    assert cut_layers(NAMES, None, None) == [NAMES]
    assert cut_layers(NAMES, None, []) == [NAMES]


def test_one_block_and_as_many_blocks_as_layers_are_the_limits():
    assert cut_layers(NAMES, 1, None) == [NAMES]
    assert cut_layers(NAMES, len(NAMES), None) == [[name] for name in NAMES]


def test_blocks_that_agree_with_the_cuts_are_accepted():
    expected = [["conv1", "norm1", "relu1", "pool1"], ["conv2", "output"]]
    assert cut_layers(NAMES, 2, ["conv2"]) == expected


@pytest.mark.parametrize("blocks", [0, -1, 7, 100])
def test_a_number_of_blocks_out_of_range_is_refused(blocks):
    with pytest.raises(UserError, match=rf"network\.blocks: got {blocks}, expected 1 to 6") as refusal:
        cut_layers(NAMES, blocks, None)
    assert "conv1, norm1" in str(refusal.value), "the layers are listed"


def test_blocks_that_clash_with_the_cuts_are_refused():
    with pytest.raises(UserError, match=r"network\.blocks: got 3 beside 1 network\.cuts, which make 2"):
        cut_layers(NAMES, 3, ["conv2"])


def test_an_unknown_cut_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"network\.cuts: got 'conv_2'.*did you mean 'conv2'\?"):
        cut_layers(NAMES, None, ["conv_2"])


def test_an_unknown_cut_that_resembles_nothing_is_refused_without_a_hint():
    with pytest.raises(UserError, match=r"network\.cuts: got 'zzz'") as refusal:
        cut_layers(NAMES, None, ["zzz"])
    assert "did you mean" not in str(refusal.value)
    assert "a cut names the first layer of a new block" in str(refusal.value)


def test_the_first_layer_is_no_cut():
    with pytest.raises(UserError, match=r"network\.cuts: got 'conv1', expected layers other than the first"):
        cut_layers(NAMES, None, ["conv1"])


@pytest.mark.parametrize("cuts", [["conv2", "relu1"], ["relu1", "conv2", "pool1"]])
def test_cuts_out_of_order_are_refused(cuts):
    with pytest.raises(UserError, match=r"network\.cuts: .*in the network's order, each once"):
        cut_layers(NAMES, None, cuts)


def test_a_repeated_cut_is_refused():
    with pytest.raises(UserError, match=r"network\.cuts: .*each once"):
        cut_layers(NAMES, None, ["conv2", "conv2"])
