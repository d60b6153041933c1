"""Simulated slowness: how long a piece of computing lasts, with a sleep that only takes notes."""

import math
import time
from statistics import mean, pstdev

import pytest

from actors.block import Block
from actors.block_actor import BlockActor
from actors.stretch import Slowness, Stretch
from tests.runs import run


def lengths(num_pieces=1, piece_s=1.0, **own):
    """Return how long equal pieces last, in seconds, their rests included."""
    slept, found = [], []
    stretch = Stretch(Slowness(**own), sleep=slept.append)
    for _ in range(num_pieces):
        slept.clear()
        stretch.after(piece_s)
        found.append(piece_s + sum(slept))
        assert all(seconds > 0 for seconds in slept)
    return found


@pytest.mark.parametrize(
    ("own", "expected"), [({}, 0.5), ({"factor": 3.0}, 1.5), ({"pad": 4.0}, 2.0), ({"factor": 3.0, "pad": 4.0}, 6.0)]
)
def test_a_piece_lasts_as_many_times_longer_as_factor_and_pad_say(own, expected):
    assert lengths(piece_s=0.5, **own) == [pytest.approx(expected)]


def test_jitter_spreads_the_length_around_the_same_mean_and_repeats_with_its_seed():
    one, again, other = (lengths(4000, pad=20.0, jitter=0.5, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert mean(one) == pytest.approx(20.0, rel=0.03)
    assert pstdev(one) / mean(one) == pytest.approx(math.sqrt(math.exp(0.25) - 1), rel=0.1)


def test_no_piece_lasts_less_than_its_computing_so_that_jitter_alone_makes_pieces_longer():
    found = lengths(4000, jitter=0.5)
    assert min(found) == 1.0 and found.count(1.0) > 1000, "shorter draws"
    expected = 1 + math.erf(0.25 / math.sqrt(2))  # E[max(1, X)] = 2 Phi(jitter / 2) for a lognormal X of mean 1
    assert mean(found) == pytest.approx(expected, rel=0.03)


def test_in_a_run_the_steps_of_a_block_really_last_that_much_longer_than_its_computing(tmp_path, monkeypatch):
    """At least: what else counts as computing only adds to it, and no sleep ends early."""
    computed, spent = [0.0, 0.0], [0.0, 0.0]

    def timed(work):
        def note(block, *args, **kwargs):
            begun = time.perf_counter()
            try:
                return work(block, *args, **kwargs)
            finally:
                computed[block.spec.index] += time.perf_counter() - begun

        return note

    for name in ("forward", "learn"):
        monkeypatch.setattr(Block, name, timed(getattr(Block, name)))
    finish = BlockActor.finish

    def noted(actor):
        spent[actor.spec.index] = actor.times.seconds()["compute"]
        return finish(actor)

    monkeypatch.setattr(BlockActor, "finish", noted)
    faults = {"slow": [{"block": 1, "factor": 3}], "pad": 2}
    run(tmp_path / "run", network={"blocks": 2}, faults=faults, training={"epochs": 1}, evaluation={"every_epochs": 0})
    assert min(computed) > 0
    assert spent[0] >= 2 * computed[0] and spent[1] >= 6 * computed[1]
