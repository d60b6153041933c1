"""The recovery protocol under thousands of interleavings of steps, deaths, commits and their announcements."""

import functools
import itertools

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from actors.program import BlockProgram
from actors.transport.inbox import Inbox
from actors.transport.outbox import Outbox
from tests.model.protocol import BATCHES, Chain

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

    @rule()
    def commit(self):
        self.chain.commit()

    @rule(actor=ACTORS)
    def tell(self, actor):
        self.chain.tell(self.chain.names[actor])

    def teardown(self):
        self.chain.run_to_the_end()
        assert self.chain.trained() == [list(range(BATCHES))] * 3
        assert self.chain.outcome() == undisturbed(self.late)
        assert self.chain.committed == sorted(set(self.chain.committed))
        assert not self.chain.imbalances()


class LateProtocol(Protocol):
    """The same with feedback that comes after fixed delays."""

    late = True


FAST = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck), print_blob=False,
)  # fmt: skip


@pytest.mark.parametrize("machine", [Protocol, LateProtocol])
def test_no_interleaving_of_deaths_and_commits_changes_a_history(machine):
    run_state_machine_as_test(machine, settings=FAST)


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


MUTANTS = [
    (forgets_what_is_not_durable, Protocol),
    (leaves_out_feedback_under_way, LateProtocol),
    (repeats_late_inputs, LateProtocol),
    (uses_duplicates, Protocol),
]


@pytest.mark.parametrize(("mutant", "machine"), MUTANTS, ids=lambda value: value.__name__)
def test_a_mistake_in_the_protocol_is_found(monkeypatch, mutant, machine):
    undisturbed(machine.late)
    mutant(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017 - whichever check finds it first
        run_state_machine_as_test(machine, settings=settings(FAST, phases=[Phase.generate]))
