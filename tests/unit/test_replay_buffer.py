"""The replay buffer as pure code: caps, reuse, promises, and that nothing is ever unaccounted for (T21)."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from actors.replay_buffer import ReplayBuffer, ReplaySettings, cannot_progress

ORDERS = ("fifo", "lifo", "uniform", "least_used")
POLICIES = ("block", "drop_oldest", "drop_newest")


def buffer(**own):
    return ReplayBuffer(ReplaySettings(**own), draw=lambda n: (7 * n) // 11)


def filled(count, **own):
    made = buffer(**own)
    for version in range(count):
        made.insert(f"m{version}", version, 10)
    return made


@st.composite
def any_settings(draw):
    own = {
        "capacity": draw(st.integers(1, 6)),
        "capacity_bytes": draw(st.none() | st.integers(5, 60)),
        "order": draw(st.sampled_from(ORDERS)),
        "max_reuse": draw(st.none() | st.integers(1, 4)),
        "on_full": draw(st.sampled_from(POLICIES)),
        "samples_per_insert": draw(st.none() | st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 4.0])),
        "tolerance": draw(st.none() | st.sampled_from([1.0, 2.0, 4.0, 9.0])),
    }
    try:
        return ReplaySettings(**own)
    except ValueError:
        assume(False)


ACTIONS = ["insert", "sample", "insert", "sample", "promise", "resize"]
STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(1, 40)), min_size=10, max_size=80)
SETTINGS = st.lists(any_settings(), min_size=2, max_size=3)
BOUNDS = st.none() | st.integers(0, 3)
common = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


class Driven:
    """A buffer driven as its consumer drives it; remembers everything that was trained on.

    `own`: the settings it begins with, and those that it is given later.
    """

    def __init__(self, own, bound):
        self.own = [each for each in own if cannot_progress(each, bound) is None]
        assume(self.own)
        self.buffer, self.bound = ReplayBuffer(self.own[0], draw=lambda n: (7 * n) // 11), bound
        self.uses, self.promised, self.version = {}, 0, 0
        self.apart, self.num_full = 0.0, 0

    def is_paced(self):
        """Whether a producer under the bound would have sent another message."""
        return self.bound is None or self.promised >= self.version - 1 - self.bound

    @property
    def finished(self):
        """Uses that the producer may have finished: all, or all but the one whose message it has just sent."""
        return self.version if self.is_paced() else self.version - 1

    def step(self, action, size):
        made, ratio = self.buffer, self.buffer.settings.samples_per_insert or 0.0
        if action == "insert" and self.is_paced() and made.takes() and made.fits(size):
            made.insert(("h", self.version, size), self.version, size)
            self.apart -= ratio * any(entry.version == self.version for entry in made._entries.values())
            self.version += 1
        elif action == "sample" and made.can_sample():
            self.sample()
        elif action == "promise":
            now = made.promise(self.version, self.bound)
            assert now >= self.promised, "a promise is never taken back"
            self.promised = now
        elif action == "resize":
            self.resize(self.own[size % len(self.own)])
        self.check()

    def sample(self):
        made = self.buffer
        entry = made.sample(0 if self.bound is None else self.version + 1 - self.bound)
        assert entry.item[1] == entry.version and entry.item[2] == entry.num_bytes, "parts never separate"
        assert entry.version >= self.promised, "a promise was broken"
        assert self.bound is None or self.finished - 1 - entry.version <= self.bound, "older than the bound"
        used = self.uses[entry.version] = self.uses.get(entry.version, 0) + 1
        assert used <= (made.settings.max_reuse or used), "used too often"
        self.apart += 1

    def resize(self, own):
        """Count what the limiter limits anew; where a full buffer blocks, entries bring the uses they have left."""
        self.buffer.resize(own)
        self.num_full = self.buffer.dropped["full"]
        left = [(own.max_reuse or 0) - entry.num_uses for entry in self.buffer._entries.values()]
        self.apart = -float(sum(left)) if own.on_full == "block" else 0.0

    def check(self):
        made, own = self.buffer, self.buffer.settings
        assert len(made) <= own.capacity
        assert own.capacity_bytes is None or len(made) <= 1 or made.num_bytes <= own.capacity_bytes
        assert made.num_inserted == made.trained + sum(made.dropped.values()) + len(made)
        assert own.on_full != "block" or made.dropped["full"] == self.num_full
        if own.samples_per_insert is not None:
            assert self.apart <= made._tolerance
            assert own.on_full == "block" or -self.apart <= made._tolerance + own.samples_per_insert


@common
@given(SETTINGS, STEPS, BOUNDS)
def test_caps_reuse_bound_and_accounts_hold_after_any_sequence_of_operations(own, steps, bound):
    driven = Driven(own, bound)
    for action, size in steps:
        driven.step(action, size)


@common
@given(SETTINGS, STEPS, BOUNDS, st.integers(1, 40))
def test_a_consumer_can_always_go_on(own, steps, bound, size):
    """Whatever happened before: it can train, or fetch a message that then fits."""
    driven = Driven(own, bound)
    for action, each in steps:
        driven.step(action, each)
    assert driven.buffer.can_sample() or (driven.buffer.takes() and driven.buffer.fits(size))


@common
@given(SETTINGS, STEPS, st.integers(0, 3))
def test_a_paced_producer_is_never_held_for_ever(own, steps, bound):
    """Without further arrivals, at most one use of every message makes the promise it waits for."""
    driven = Driven(own, bound)
    for action, size in steps:
        driven.step(action, size)
    made, needed = driven.buffer, driven.version - bound
    for _ in range(made.settings.capacity + 1):
        if made.promise(driven.version, bound) >= needed:
            return
        made.sample(needed + 1)
    pytest.fail(f"still promises {made.promise(driven.version, bound)}, the producer needs {needed}")


@pytest.mark.parametrize("order", ORDERS)
def test_a_message_is_used_as_often_as_it_may_be_and_no_more(order):
    made = filled(2, capacity=2, max_reuse=3, order=order)
    used = [made.sample().item for _ in range(6)]
    assert sorted(used) == ["m0"] * 3 + ["m1"] * 3
    assert not made.can_sample() and len(made) == 0 and made.trained == 2


def test_one_use_and_room_for_one_work():
    made = buffer(capacity=1, max_reuse=1)
    for version in range(3):
        assert made.takes()
        made.insert(version, version, 1)
        assert not made.takes()
        assert made.sample().item == version
    assert (made.trained, dict(made.dropped)) == (3, {})


def test_a_full_ring_loses_its_oldest():
    made = filled(5, capacity=3, on_full="drop_oldest", order="fifo")
    assert [made.sample().item for _ in range(3)] == ["m2", "m3", "m4"]
    assert made.dropped == {"full": 2}


def test_a_used_message_that_makes_room_counts_as_trained():
    made = filled(2, capacity=2, on_full="drop_oldest", order="fifo", max_reuse=4)
    assert made.sample().item == "m0"
    made.insert("m2", 2, 10)
    assert (made.trained, made.dropped["full"], len(made)) == (1, 0, 2)


def test_drop_newest_keeps_what_is_there():
    made = filled(5, capacity=3, on_full="drop_newest", order="lifo")
    assert [made.sample().item for _ in range(3)] == ["m2", "m1", "m0"]
    assert made.dropped == {"full": 2}


@pytest.mark.parametrize(
    ("order", "expected"),
    [("fifo", ["m0"] * 4), ("lifo", ["m2"] * 4), ("least_used", ["m2", "m1", "m0", "m2"])],
)
def test_orders(order, expected):
    made = filled(3, capacity=3, on_full="drop_oldest", max_reuse=None, order=order)
    assert [made.sample().item for _ in range(4)] == expected


def test_uniform_draws_every_message_about_as_often():
    import random

    made = ReplayBuffer(
        ReplaySettings(capacity=4, on_full="drop_oldest", max_reuse=None, order="uniform"), random.Random(0).randrange
    )
    for version in range(4):
        made.insert(version, version, 1)
    counts = [0] * 4
    for _ in range(4000):
        counts[made.sample().item] += 1
    assert all(900 < count < 1100 for count in counts), counts


def test_a_used_message_is_retired_rather_than_holding_the_producer():
    made = filled(3, capacity=10, max_reuse=5, order="fifo")
    made.sample()
    assert made.promise(producer_version=3, bound=0) == 1, "m1 has not been trained on: the producer waits for it"
    assert (made.trained, len(made)) == (1, 2), "m0 was let go of"
    assert made.sample().item == "m1"
    assert made.promise(producer_version=3, bound=0) == 2


def test_a_bound_leaves_messages_within_it_to_be_used_again():
    made = filled(4, capacity=10, max_reuse=5, order="fifo")
    for _ in range(2):
        made.sample()
    assert made.promise(producer_version=4, bound=9) == 0
    assert len(made) == 4


def test_bytes_are_counted_and_a_large_message_may_be_held_alone():
    made = buffer(capacity=9, capacity_bytes=25, on_full="drop_oldest")
    for version in range(3):
        made.insert(version, version, 10)
    assert (len(made), made.num_bytes, made.dropped["full"]) == (2, 20, 1)
    made.insert("large", 3, 99)
    assert (len(made), made.num_bytes) == (1, 99)


def test_a_blocking_buffer_lets_a_message_wait_that_does_not_fit():
    made = buffer(capacity=9, capacity_bytes=25)
    made.insert(0, 0, 20)
    assert made.takes() and not made.fits(10)
    with pytest.raises(ValueError, match="ask `fits` first"):
        made.insert(1, 1, 10)
    made.sample()
    assert made.fits(10)


def test_versions_rise_on_an_edge():
    made = filled(2, capacity=4)
    with pytest.raises(ValueError, match="version 1 after 1"):
        made.insert("again", 1, 1)


def test_a_smaller_capacity_drops_the_oldest():
    made = filled(4, capacity=4, order="fifo")
    made.resize(ReplaySettings(capacity=2, order="fifo"))
    assert (made.dropped["resized"], made.sample().item) == (2, "m2")


DROPS = {"capacity": 3, "on_full": "drop_oldest"}


def rounds_to_use(made, version):
    """Insert and use by turns until a use was possible; return the versions inserted for it."""
    inserted = 0
    while not made.can_sample():
        assert made.takes() and inserted < 100, "neither a use nor an arrival is allowed"
        made.insert(version + inserted, version + inserted, 1)
        inserted += 1
    return inserted


@pytest.mark.parametrize("before", [None, 1.0])
@pytest.mark.parametrize("after", [1.0, 4.0])
def test_a_limiter_that_is_set_in_mid_run_counts_from_there(before, after):
    made = buffer(**DROPS, max_reuse=4, samples_per_insert=before)
    for version in range(40):
        rounds_to_use(made, 100 * version)
        made.sample()
    made.resize(ReplaySettings(**DROPS, max_reuse=4, samples_per_insert=after))
    assert rounds_to_use(made, 100 * 40) <= 1
    for use in range(30):
        made.sample()
        assert rounds_to_use(made, 100 * (41 + use)) <= 1


def test_a_smaller_reuse_lets_go_of_what_was_used_as_often():
    made = filled(2, **DROPS, order="fifo", max_reuse=4)
    for _ in range(3):
        made.sample()
    made.resize(ReplaySettings(**DROPS, order="fifo", max_reuse=1))
    assert (made.sample().item, len(made), made.trained) == ("m1", 0, 2)


def test_a_buffer_that_is_to_block_takes_what_its_entries_have_left_into_account():
    """Two of three entries are dropped: their uses, which will never be, may not keep new messages out."""
    own = {"max_reuse": 4, "samples_per_insert": 4.0, "order": "fifo"}
    made = filled(3, capacity=3, tolerance=20.0, **own)
    made.resize(ReplaySettings(capacity=1, **own))
    for _ in range(4):
        made.sample()
    assert len(made) == 0 and made.takes()


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"capacity": 0}, "capacity 0"),
        ({"max_reuse": 0}, "max_reuse 0"),
        ({"max_reuse": None}, "nothing would ever leave"),
        ({"samples_per_insert": 0.0}, "samples_per_insert 0"),
        ({"samples_per_insert": 3.0, "max_reuse": 2, "on_full": "drop_oldest"}, "never catch up"),
        ({"samples_per_insert": 1.0, "max_reuse": 2}, "waits for max_reuse uses"),
        ({"samples_per_insert": 2.0, "max_reuse": 2, "on_full": "drop_oldest", "tolerance": 1.0}, "tolerance 1"),
    ],
)
def test_settings_that_cannot_progress_are_refused_with_the_reason(own, reason):
    with pytest.raises(ValueError, match=reason):
        ReplaySettings(**own)
    assert cannot_progress(ReplaySettings()) is None


def test_a_limiter_beside_a_bound_is_refused():
    own = ReplaySettings(samples_per_insert=1.0)
    assert cannot_progress(own) is None
    assert "may forbid the use" in str(cannot_progress(own, bound=4))
