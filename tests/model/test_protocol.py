"""The recovery protocol under hundreds of interleavings of thousands of operations: deaths, zombies, commits and their
announcements come between any two of them."""

import functools
import itertools
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from actors.program import BlockProgram
from actors.transport.inbox import Inbox
from actors.transport.outbox import Outbox
from tests.model.protocol import BATCHES, Chain, Violation

ACTORS = st.integers(0, 3)
_folders = itertools.count()
MOST_CRASHES = 6


def new_chain(late):
    return Chain(f"model{next(_folders)}", late)


@functools.cache
def undisturbed(late):
    chain = new_chain(late)
    chain.run_to_the_end()
    assert chain.trained() == [list(range(BATCHES))] * 3 and not chain.imbalances()
    return chain.outcome()


counted = Counter()
"""Interleavings that have been run to their ends, and the operations of actors in them."""


def must_be(got, expected):
    """Raise if something that must hold at the end does not."""
    if got != expected:
        raise Violation(f"got {got}, expected {expected}")


class Protocol(RuleBasedStateMachine):
    """Any interleaving leads to the same histories, every batch once, and every message accounted for."""

    late = False

    def __init__(self):
        super().__init__()
        self.chain = new_chain(self.late)
        self.crashes = 0

    @rule(actor=ACTORS, count=st.integers(1, 12))
    def advance(self, actor, count):
        for _ in range(count):
            self.chain.step(self.chain.names[actor])

    @rule(count=st.integers(1, 30))
    def advance_all(self, count):
        for _ in range(count):
            for name in self.chain.names:
                self.chain.step(name)

    @precondition(lambda self: self.crashes < MOST_CRASHES)
    @rule(actor=ACTORS)
    def crash(self, actor):
        self.crashes += 1
        self.chain.crash(self.chain.names[actor])

    @precondition(lambda self: self.crashes < MOST_CRASHES)
    @rule(actor=ACTORS)
    def hang(self, actor):
        self.crashes += 1
        self.chain.hang(self.chain.names[actor])

    @precondition(lambda self: self.crashes < MOST_CRASHES)
    @rule()
    def return_all(self):
        self.crashes += 1
        self.chain.return_all()

    @precondition(lambda self: self.chain.zombies)
    @rule(count=st.integers(1, 12))
    def advance_zombies(self, count):
        for _ in range(count):
            self.chain.step_zombies()

    @rule()
    def commit(self):
        self.chain.commit()

    @rule(actor=ACTORS)
    def tell(self, actor):
        self.chain.tell(self.chain.names[actor])

    @invariant()
    def every_message_is_in_one_state(self):
        if not self.chain.is_broken:
            self.chain.check_balance()

    def teardown(self):
        chain = self.chain
        if chain.is_broken:
            return  # what must hold at any time did not
        chain.run_to_the_end()
        counted.update(examples=1, operations=chain.num_operations)
        must_be(chain.trained(), [list(range(BATCHES))] * 3)
        must_be(chain.outcome(), undisturbed(self.late))
        must_be(chain.committed, sorted(set(chain.committed)))
        must_be(chain.imbalances(), [])


class LateProtocol(Protocol):
    """The same with feedback that comes after fixed delays."""

    late = True


FAST = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck), print_blob=False, report_multiple_bugs=False,
)  # fmt: skip


@pytest.mark.parametrize("machine", [Protocol, LateProtocol])
def test_no_interleaving_of_deaths_and_commits_changes_a_history(machine):
    undisturbed(machine.late)
    counted.clear()
    run_state_machine_as_test(machine, settings=FAST)
    assert counted["examples"] >= 90 and counted["operations"] > 15_000, counted


def forgets_what_is_not_durable(monkeypatch):
    """Producers let go of what was received, covered or not."""

    def free(self):
        while self._kept and self._kept[0][0] <= self.received:
            self._kept.popleft()

    monkeypatch.setattr(Outbox, "_free", free)


def leaves_out_feedback_under_way(monkeypatch):
    """A snapshot does not hold what its receiver's position does not cover."""
    state = Outbox.state
    monkeypatch.setattr(Outbox, "state", lambda self: {**state(self), "kept": []})


def repeats_late_inputs(monkeypatch):
    """A restored block handles the feedback before its position once more."""
    restore = BlockProgram.restore

    def wrong(self, state, **settings):
        restore(self, state, **settings)
        self._is_restored = False

    monkeypatch.setattr(BlockProgram, "restore", wrong)


def uses_duplicates(monkeypatch):
    """A consumer that goes on forgets what it had received."""
    restore = Inbox.restore

    def wrong(self, state):
        restore(self, {**state, "received": state["received"] - 1})

    monkeypatch.setattr(Inbox, "restore", wrong)


def waits_for_no_room(monkeypatch):
    """A producer puts on an edge whatever waits there."""
    monkeypatch.setattr(Outbox, "num_waiting", property(lambda self: 0))


def waits_for_no_consumer(monkeypatch):
    """A producer goes on whatever its consumer may still start to train on."""
    monkeypatch.setattr(Outbox, "wait_trainable", lambda self, version, wait_s: True)


MUTANTS = [
    (forgets_what_is_not_durable, Protocol),
    (leaves_out_feedback_under_way, LateProtocol),
    (repeats_late_inputs, LateProtocol),
    (uses_duplicates, Protocol),
    (waits_for_no_room, Protocol),
    (waits_for_no_consumer, Protocol),
]


@pytest.mark.parametrize(("mutant", "machine"), MUTANTS, ids=lambda value: value.__name__)
def test_a_mistake_in_the_protocol_is_found(monkeypatch, mutant, machine):
    undisturbed(machine.late)
    mutant(monkeypatch)
    with pytest.raises(Violation):
        run_state_machine_as_test(machine, settings=settings(FAST, phases=[Phase.generate]))
