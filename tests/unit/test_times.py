import pytest

from actors.times import SHARES, Times


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def spend(times, clock, share, seconds):
    with times.within(share):
        clock.now += seconds


def test_the_shares_of_a_run_sum_to_one(clock):
    times = Times(clock)
    times.start()
    for number, share in enumerate(SHARES, start=1):
        spend(times, clock, share, float(number))
    clock.now += 3
    times.stop()
    fractions = times.fractions()
    assert tuple(fractions) == SHARES and sum(fractions.values()) == pytest.approx(1.0, abs=1e-12)
    seconds = dict(zip(SHARES, range(1, len(SHARES) + 1), strict=True))
    assert times.seconds() == seconds | {"other": seconds["other"] + 3}


def test_elapsed_is_the_time_since_the_start_whatever_the_thread_did(clock):
    times = Times(clock)
    assert times.elapsed() == 0
    clock.now += 5
    times.start()
    clock.now += 1
    spend(times, clock, "compute", 2.0)
    with times.within("wait_input"):
        clock.now += 4
        assert times.elapsed() == 7


def test_the_shares_sum_to_one_while_the_watch_runs(clock):
    times = Times(clock)
    times.start()
    spend(times, clock, "compute", 1.0)
    times.enter("wait_input")
    clock.now += 3.0
    assert times.fractions()["wait_input"] == 0.75 and sum(times.fractions().values()) == 1.0
    assert times.seconds()["wait_input"] == 3.0, "looking does not change the count"


def test_time_inside_an_inner_share_counts_there_only(clock):
    times = Times(clock)
    times.start()
    with times.within("compute"):
        clock.now += 1.0
        spend(times, clock, "transfer", 2.0)
        clock.now += 4.0
    assert (times.seconds()["compute"], times.seconds()["transfer"], times.seconds()["other"]) == (5.0, 2.0, 0.0)


def test_a_body_that_fails_still_gives_the_share_back(clock):
    times = Times(clock)
    times.start()
    with pytest.raises(KeyError), times.within("compute"):
        clock.now += 1.0
        raise KeyError
    assert times.enter("snapshot") == "other"


def test_before_the_start_nothing_counts_and_all_shares_are_zero(clock):
    times = Times(clock)
    spend(times, clock, "compute", 5.0)
    assert set(times.fractions().values()) == {0.0} and times.enter("compute") == "other"
    times.start()
    clock.now += 1.0
    assert times.seconds() == dict.fromkeys(SHARES, 0.0) | {"other": 1.0}


def test_a_stopped_watch_stays_as_it_was_and_starting_twice_changes_nothing(clock):
    times = Times(clock)
    times.start()
    clock.now += 1.0
    times.start()
    clock.now += 1.0
    times.stop()
    clock.now += 50.0
    spend(times, clock, "compute", 5.0)
    times.stop()
    assert times.seconds()["other"] == 2.0 and times.seconds()["compute"] == 0.0


def test_a_watch_that_starts_again_adds_to_what_it_counted(clock):
    times = Times(clock)
    for _ in range(2):
        times.start()
        spend(times, clock, "compute", 1.5)
        times.stop()
        clock.now += 10.0
    assert times.seconds()["compute"] == 3.0 and times.fractions()["compute"] == 1.0
