"""When a step or a silence counts as a hang, on a clock of the test's own."""

import pytest

from orchestrator.step_watch import FIRST_STEP_S, LEAST_DEADLINE_S, StepWatch


class Watched:
    """Actors that are looked at once a second."""

    def __init__(self, deadline_s="auto", names=("block0",)):
        self.now, self.names, self.computed_s = 100.0, names, 0.0
        self.watch = StepWatch(deadline_s, lambda: self.now)
        self.watch.begin(names)

    def look(self, version, busy_s=0.0, names=None, **facts):
        one = {"version": version, "busy_s": busy_s, "computed_s": self.computed_s, **facts}
        self.watch.heard(dict.fromkeys(self.names if names is None else names, one))

    def compute(self, version, seconds, **facts):
        """Spend seconds in one step, which is reported once a second."""
        for second in range(seconds):
            self._pass_a_second()
            self.look(version, second + 1.0, **facts)

    def _pass_a_second(self):
        self.now += 1.0
        self.computed_s += 1.0

    def train(self, step_s, steps, first=0, names=None):
        """Let every step be reported once a second while it lasts."""
        for version in range(first, first + steps):
            for second in range(step_s):
                self.look(version, float(second), names)
                self._pass_a_second()
        self.look(first + steps, 0.0, names)

    @property
    def deadline_s(self):
        return self.watch.deadline_s("block0")


def test_slow_steps_are_given_twenty_of_their_median():
    run = Watched()
    run.train(step_s=30, steps=6)
    assert run.deadline_s == pytest.approx(20 * 30.0)
    run.compute(6, 600)
    assert run.watch.hung() == {}
    run.compute(6, 601)
    assert run.watch.hung() == {"block0": 601.0}


def test_fast_steps_are_given_the_least_deadline_also_when_several_end_between_two_looks():
    run = Watched()
    for version in range(0, 80, 8):
        run.look(version)
        run._pass_a_second()
    assert run.deadline_s == LEAST_DEADLINE_S
    run.compute(80, 61)
    assert run.watch.hung() == {"block0": 61.0}


def test_every_actor_is_measured_by_its_own_steps():
    run = Watched(names=("block0", "block1"))
    for second in range(120):
        run.look(second * 50, names=["block1"])
        run.look(second // 30, names=["block0"])
        run._pass_a_second()
    assert run.deadline_s == pytest.approx(600.0)
    assert run.watch.deadline_s("block1") == LEAST_DEADLINE_S


def test_the_first_step_of_a_life_has_time_to_compile_and_is_no_measure_of_the_next():
    run = Watched()
    run.train(step_s=300, steps=1)
    run.train(step_s=1, steps=3, first=1)
    assert run.deadline_s == LEAST_DEADLINE_S
    run.watch.begin(["block0"])
    run.compute(4, 300)
    assert run.deadline_s == FIRST_STEP_S and run.watch.hung() == {}


def test_a_step_is_what_a_block_computes_not_what_it_waits_for():
    run = Watched()
    for version in range(8):
        run.look(version)
        run.now += 300.0  # behind a slow neighbour
        run.computed_s += 1.0
        run.look(version)
    assert run.deadline_s == LEAST_DEADLINE_S
    run.compute(8, 61)
    assert run.watch.hung() == {"block0": 61.0}


def test_the_first_step_and_one_that_may_compile_may_last_while_the_process_answers():
    run = Watched(deadline_s=5.0)
    run.compute(0, 1000)
    assert run.watch.hung() == {}
    run.train(step_s=1, steps=3)
    run.compute(3, 1000, may_compile=True)
    assert run.watch.hung() == {}


def test_a_step_that_may_compile_has_time_for_it():
    run = Watched()
    run.train(step_s=1, steps=3)
    run.compute(3, 90, may_compile=True)
    assert run.watch.hung() == {}
    run.compute(3, 90, may_compile=False)
    assert run.watch.hung() == {"block0": 90.0}


def test_an_actor_that_never_reports_counts_as_hung():
    run = Watched()
    for _ in range(int(FIRST_STEP_S) + 1):
        run.now += 1.0
        run.look(0, names=[])
    assert run.watch.hung() == {"block0": FIRST_STEP_S + 1}


def test_a_life_that_falls_silent_hangs_and_one_that_was_forgotten_does_not():
    run = Watched(deadline_s=5.0)
    run.train(step_s=1, steps=3)
    for _ in range(6):
        run.now += 1.0
        run.look(3, names=[])
    assert run.watch.silent_s("block0") == 6.0 and run.watch.hung() == {"block0": 6.0}
    run.watch.forget("block0")
    assert run.watch.hung() == {} and run.watch.silent_s("block0") == 0.0


def test_a_pause_is_neither_silence_nor_a_step():
    run = Watched()
    run.train(step_s=2, steps=2)
    run.now += 10_000.0
    run.watch.restart()
    run.look(2, names=[])  # its report comes too late for the first look
    assert run.watch.hung() == {}
    run.look(2, busy_s=10_001.0)  # its step had begun before the pause
    assert run.watch.hung() == {}
    run.train(step_s=2, steps=2, first=2)
    assert run.deadline_s == LEAST_DEADLINE_S and run.watch.hung() == {}


def test_nobody_is_silent_while_nobody_listens():
    run = Watched(deadline_s=20.0)
    run.train(step_s=1, steps=3)
    run.now += 30.0  # the driver has read back a large checkpoint
    run.look(3, names=[])
    assert run.watch.hung() == {}
    for _ in range(21):
        run.now += 1.0
        run.look(3, names=[])
    assert run.watch.hung() == {"block0": 21.0}
