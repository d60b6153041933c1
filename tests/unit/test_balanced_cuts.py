import itertools
import random

import pytest

from orchestrator.balanced_cuts import LayerCost, balanced_starts, block_seconds


def costs_of(draw, number):
    return [
        LayerCost(
            forward=draw.random(), backward=2 * draw.random(), first_backward=draw.random(), update=draw.random() / 4,
            head=draw.random(), enter=draw.random() / 8, leave=draw.random() / 8,
        )
        for _ in range(number)
    ]  # fmt: skip


def slowest(starts, number, seconds, speeds):
    bounds = [0, *starts, number]
    return max(seconds(a, b) / speed for (a, b), speed in zip(itertools.pairwise(bounds), speeds, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_no_other_cut_has_a_faster_slowest_block(seed):
    """Against every cut there is; heads, messages, saved input gradients and speeds of devices included."""
    draw = random.Random(seed)
    number = draw.randint(1, 9)
    speeds = [draw.choice([0.5, 1.0, 2.0]) for _ in range(draw.randint(1, number))]
    seconds = block_seconds(costs_of(draw, number))
    every = itertools.combinations(range(1, number), len(speeds) - 1)
    best = min(slowest(list(starts), number, seconds, speeds) for starts in every)
    got = balanced_starts(number, seconds, speeds=speeds)
    assert slowest(got, number, seconds, speeds) == pytest.approx(best)


def test_a_block_costs_its_layers_its_own_head_and_its_messages_but_not_its_first_input_gradient():
    layer = LayerCost(forward=1, backward=20, first_backward=10, update=100, head=1000, enter=1e4, leave=1e5)
    seconds = block_seconds([layer] * 5)
    assert seconds(1, 4) == 3 * 121 - 10 + 1000 + 1e4 + 1e5


def test_an_expensive_head_is_avoided():
    """Equal layers would be cut in the middle; a costly head there moves the cut."""
    plain = [LayerCost(forward=1.0)] * 4
    assert balanced_starts(4, block_seconds(plain), speeds=[1, 1]) == [2]
    costly = [plain[0], LayerCost(forward=1.0, head=5.0), *plain[2:]]
    assert balanced_starts(4, block_seconds(costly), speeds=[1, 1]) == [1]


def test_a_slow_device_gets_fewer_layers():
    starts = balanced_starts(10, block_seconds([LayerCost(forward=1.0)] * 10), speeds=[1, 0.25])
    assert starts == [8]


def test_a_thousand_layers_are_cut_into_many_blocks():
    seconds = block_seconds([LayerCost(forward=1.0)] * 300)
    starts = balanced_starts(300, seconds, speeds=[1.0] * 30)
    assert starts == list(range(10, 300, 10))
