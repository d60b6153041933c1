"""The sizing of buffers on a simulated clock: it converges, does not swing, and keeps to its budget."""

import itertools
import random
from dataclasses import replace

from orchestrator.buffer_sizing import FORGET, Seen, Size, resized

INTERVAL = 400


def line(produce, consume, capacity, state):
    """Pass INTERVAL messages through one buffer; return what was seen. `state`: kept between calls."""
    waited = {"input": 0.0, "output": 0.0}
    start, most = state["consumer"], 0
    for _ in range(INTERVAL):
        made = state["producer"] + produce()
        freed = state["taken"][-capacity] if len(state["taken"]) >= capacity else 0.0
        put = max(made, freed)
        waited["output"] += put - made
        state["producer"] = put
        begun = max(state["consumer"], put)
        waited["input"] += begun - state["consumer"]
        state["taken"].append(begun)
        most = max(most, sum(taken > put for taken in state["taken"][-capacity:]))
        state["consumer"] = begun + consume()
    span = state["consumer"] - start
    return Seen(waited["input"] / span, waited["output"] / span, most, 1000.0), INTERVAL / span


def controlled(produce, consume, intervals, *, capacity=1, budget=1e9):
    state = {"producer": 0.0, "consumer": 0.0, "taken": []}
    size, history, rates = Size(capacity), [], []
    for _ in range(intervals):
        seen, rate = line(produce, consume, size.capacity, state)
        size = resized({"edge": size}, {"edge": seen}, budget)["edge"]
        history.append(size.capacity)
        rates.append(rate)
    return history, rates


def jitter(seed, mean=1.0, sigma=0.8):
    draw = random.Random(seed)
    return lambda: mean * draw.lognormvariate(0, sigma) / 1.377  # the mean of exp(N(0, 0.8)) is 1.377


def test_jitter_on_both_sides_grows_the_buffer_until_it_no_longer_costs_time():
    history, rates = controlled(jitter(1), jitter(2), 40)
    assert history[-1] >= 8 > 1
    assert sum(rates[-5:]) / 5 > 0.92 > sum(rates[:1]), "a buffer of one loses far more"


def test_sizes_settle_and_do_not_swing():
    history, _ = controlled(jitter(1), jitter(2), FORGET)
    turns = sum((a < b) != (b < c) for a, b, c in zip(history, history[1:], history[2:], strict=False) if a != b != c)
    assert turns <= 4, history
    assert max(history[-10:]) - min(history[-10:]) <= 2, history


def test_no_buffer_grows_where_one_side_is_simply_slower():
    for produce, consume in ((1.0, 3.0), (3.0, 1.0)):
        history, _ = controlled(lambda p=produce: p, lambda c=consume: c, 30, capacity=2)
        assert set(history) <= {1, 2}


def test_equal_steady_stages_keep_their_buffer():
    history, _ = controlled(lambda: 1.0, lambda: 1.0, 30, capacity=3)
    assert len(set(history[-10:])) == 1


def test_a_buffer_shrinks_after_the_jitter_has_gone_but_only_when_the_memory_has_faded():
    size = Size(12, too_small=8)
    quiet = Seen(0.0, 0.0, 1, 1000.0)
    sizes = []
    for _ in range(10 * FORGET):
        size = resized({"edge": size}, {"edge": quiet}, 1e9)["edge"]
        sizes.append(size.capacity)
    assert 9 in sizes[:FORGET] and min(sizes[: FORGET - 1]) == 9, "one more than what was too small"
    assert sizes[-1] < 9
    assert all(a >= b for a, b in itertools.pairwise(sizes))


def test_all_buffers_together_keep_to_the_budget_and_who_gains_least_gives_way():
    starved, mild = Seen(0.4, 0.3, 4, 1000.0), Seen(0.05, 0.3, 4, 1000.0)
    sizes = {"a": Size(4), "b": Size(4)}
    for _ in range(20):
        sizes = resized(sizes, {"a": mild, "b": starved}, 20_000)
        assert sum(size.capacity for size in sizes.values()) <= 20
    assert sizes["b"].capacity > sizes["a"].capacity


def test_what_does_not_fit_into_the_budget_shrinks_largest_first_down_to_one_message_each():
    quiet = Seen(0.0, 0.0, 4, 1000.0)
    sizes = {"a": Size(4, message_bytes=1000.0), "b": Size(9)}
    within = resized(sizes, {"b": quiet}, 10_000)
    assert {edge: size.capacity for edge, size in within.items()} == {"a": 4, "b": 6}
    huge = resized(sizes, {"b": replace(quiet, message_bytes=1e6)}, 10_000)
    assert {edge: size.capacity for edge, size in huge.items()} == {"a": 1, "b": 1}


def test_the_budget_counts_buffers_that_nothing_was_seen_of_in_this_interval():
    starved = Seen(0.4, 0.4, 4, 1000.0)
    sizes = {"a": Size(16, message_bytes=1000.0), "b": Size(4)}
    assert resized(sizes, {"b": starved}, 20_000)["b"].capacity == 4
    assert resized(sizes, {"b": starved}, 22_000)["b"].capacity == 6
