"""The sizes of a chain's buffers, from reports of its actors, on a simulated clock."""

import copy
import heapq
import itertools
import random

import pytest

from actors.needs import Feedback, Needs
from orchestrator.auto_buffers import BUDGET_BYTES, FILLS, AutoBuffers
from orchestrator.config.sections import BuffersSection
from orchestrator.wiring import wire

AUTO = BuffersSection(mode="auto", capacity=1)
MESSAGE_BYTES = 1000
STEP_S = 0.02


def wiring(num_blocks, feedback=Feedback.NONE):
    last = Needs(origins=())
    needs = [Needs(feedback=feedback, origins=(num_blocks - 1,)) for _ in range(num_blocks - 1)] + [last]
    return wire(needs, schedule="pipeline")


class Chain:
    """A source and blocks whose steps last as long as they say, with a bounded buffer between neighbours."""

    def __init__(self, steps, capacity=1):
        self.edges, self.steps, self.now = wiring(len(steps) - 1).edges, steps, 0.0
        self.names = ["source", *(edge.consumer for edge in self.edges)]
        self.capacity = [capacity] * len(self.edges)
        self.held, self.sent, self.most = ([0] * len(self.edges) for _ in range(3))
        self.full_s, self.empty_s = [0.0] * len(self.edges), [0.0] * len(self.edges)
        self.waiting = {}
        self.finishes = []
        self.done = [0] * len(steps)
        for stage in range(len(steps)):
            self._begin(stage)

    def run(self, seconds):
        until = self.now + seconds
        while self.finishes and self.finishes[0][0] <= until:
            self.now, stage = heapq.heappop(self.finishes)
            self.done[stage] += 1
            self._pass_on(stage)
        self.now = until

    def _begin(self, stage):
        if stage > 0 and self.held[stage - 1] == 0:
            self.waiting[stage] = ("empty", self.now)
            return
        if stage > 0:
            self._stop_waiting(stage)
            self.held[stage - 1] -= 1
        heapq.heappush(self.finishes, (self.now + self.steps[stage](), stage))
        if stage > 0 and self.waiting.get(stage - 1, ("",))[0] == "full":
            self._pass_on(stage - 1)

    def _pass_on(self, stage):
        if stage < len(self.edges):
            if self.held[stage] >= self.capacity[stage]:
                self.waiting.setdefault(stage, ("full", self.now))
                return
            self._stop_waiting(stage)
            self.held[stage] += 1
            self.sent[stage] += 1
            self.most[stage] = max(self.most[stage], self.held[stage])
            if self.waiting.get(stage + 1, ("",))[0] == "empty":
                self._begin(stage + 1)
        self._begin(stage)

    def _stop_waiting(self, stage):
        kind, since = self.waiting.pop(stage, ("", self.now))
        if kind == "full":
            self.full_s[stage] += self.now - since
        elif kind == "empty":
            self.empty_s[stage - 1] += self.now - since

    def _going_on(self, stage, kind):
        found, since = self.waiting.get(stage, ("", self.now))
        return self.now - since if found == kind else 0.0

    def reports(self):
        """What the actors say, each by a clock of its own."""
        found = {
            name: {"clock": {"now_s": 100.0 * index + self.now}, "sends": {}, "receives": {}}
            for index, name in enumerate(self.names)
        }
        for index, edge in enumerate(self.edges):
            found[edge.producer]["sends"][edge.name] = {
                "sent": self.sent[index], "bytes": self.sent[index] * MESSAGE_BYTES, "capacity": self.capacity[index],
                "most_waiting": self.most[index], "waited_s": self.full_s[index] + self._going_on(index, "full"),
            }  # fmt: skip
            found[edge.consumer]["receives"][edge.name] = {
                "waited_s": self.empty_s[index] + self._going_on(index + 1, "empty")
            }
        self.most = list(self.held)
        return found

    def obey(self, orders):
        names = [edge.name for edge in self.edges]
        for values in orders.values():
            for edge, capacity in values["capacities"].items():
                self.capacity[names.index(edge)] = capacity
        for stage, (kind, _) in list(self.waiting.items()):
            if kind == "full":
                self._pass_on(stage)


def controlled(chain, seconds, buffers=AUTO, auto=None):
    """Run a chain for as many looks of one second; return its capacities after every one."""
    auto = auto or AutoBuffers(wiring(len(chain.steps) - 1))
    history = []
    for _ in range(seconds):
        chain.run(1.0)
        chain.obey(auto.orders(buffers, chain.reports()))
        history.append(tuple(chain.capacity))
    return history


def jitter(seed, sigma=0.8):
    draw = random.Random(seed)
    return lambda: STEP_S * draw.lognormvariate(-(sigma**2) / 2, sigma)


def steady(step_s):
    return lambda: step_s


def rate(chain, seconds):
    before = chain.done[-1]
    chain.run(seconds)
    return (chain.done[-1] - before) / seconds


def test_jitter_makes_buffers_grow_until_the_chain_is_nearly_as_fast_as_its_steps():
    small = rate(Chain([jitter(seed) for seed in range(4)]), 200.0)
    chain = Chain([jitter(seed) for seed in range(4)])
    history = controlled(chain, 200)
    assert min(history[-1]) > 3
    grown = rate(chain, 200.0)
    assert small * STEP_S < 0.7 < 0.88 < grown * STEP_S <= 1.05


def test_sizes_settle():
    history = controlled(Chain([jitter(seed) for seed in range(4)]), 600)
    for sizes in zip(*history, strict=True):
        turns = [b > a for a, b in itertools.pairwise(sizes) if a != b]
        assert sum(a != b for a, b in itertools.pairwise(turns)) <= 4, sizes
        assert max(sizes[-100:]) - min(sizes[-100:]) <= max(2, max(sizes) // 4), sizes[-100:]


def test_one_slow_block_makes_no_buffer_grow():
    history = controlled(Chain([jitter(0, 0.1), steady(3 * STEP_S), jitter(2, 0.1)], capacity=3), 60)
    assert all(capacity <= 3 for capacities in history for capacity in capacities)


def test_all_buffers_keep_to_the_budget():
    budget = BuffersSection(mode="auto", budget_bytes=8 * MESSAGE_BYTES)
    history = controlled(Chain([jitter(seed) for seed in range(4)]), 100, budget)
    assert max(sum(capacities) for capacities in history) <= 8 < sum(history[-1]) + 2
    assert BUDGET_BYTES == 256 * 1024**2


def test_nothing_is_judged_on_a_few_messages_or_while_nothing_moves():
    chain, auto = Chain([jitter(seed) for seed in range(3)], capacity=64), AutoBuffers(wiring(2))
    auto.orders(AUTO, chain.reports())
    chain.run(4.0)
    idle, moved = chain.reports(), FILLS * 64
    assert max(chain.sent) < moved
    for report in idle.values():
        for facts in (*report["sends"].values(), *report["receives"].values()):
            facts["waited_s"] = 2.0
    assert auto.orders(AUTO, idle) == {}
    paused = copy.deepcopy(idle)
    for report in paused.values():
        report["clock"]["now_s"] += 1000.0
    for _ in range(20):
        assert auto.orders(AUTO, paused) == {}


def test_what_was_waiting_is_remembered_until_there_is_enough_to_judge():
    chain, auto = Chain([steady(STEP_S), steady(STEP_S)], capacity=8), AutoBuffers(wiring(1))
    edge = "source->block0"
    for look in range(200):
        chain.run(0.19)  # four looks for 32 messages: it is judged at every fourth
        reports = chain.reports()
        reports["source"]["sends"][edge]["most_waiting"] = 8 if look % 4 == 1 else 0
        assert auto.orders(AUTO, reports) == {}, "once more than half full in every interval: not too large"


def test_a_size_that_an_actor_never_took_on_is_ordered_again_and_not_built_upon():
    chain, auto = Chain([jitter(seed) for seed in range(3)]), AutoBuffers(wiring(2))
    ordered = []
    for _ in range(10):
        chain.run(1.0)
        ordered += [set(values["capacities"].values()) for values in auto.orders(AUTO, chain.reports()).values()]
    assert len(ordered) > 10 and all(capacities == {2} for capacities in ordered)


def test_an_actor_that_begins_to_count_anew_begins_a_new_interval():
    old, auto = Chain([jitter(seed) for seed in range(3)]), AutoBuffers(wiring(2))
    controlled(old, 200, auto=auto)
    new = Chain([jitter(seed) for seed in range(3)])
    new.run(0.5)
    assert auto.orders(AUTO, new.reports()) == {}
    controlled(new, 30, auto=auto)
    assert min(new.capacity) > 1, "not only when it has counted as far as the one before"


def test_edges_whose_size_follows_from_delays_are_left_alone():
    chain, wired = Chain([jitter(seed) for seed in range(3)]), wiring(2, Feedback.NEXT_BLOCK)
    (feedback,) = (edge for edge in wired.edges if ":feedback" in edge.name)
    auto = AutoBuffers(wired)
    ordered = set()
    for _ in range(10):
        chain.run(1.0)
        reports = chain.reports()
        reports[feedback.producer]["sends"][feedback.name] = copy.deepcopy(reports["source"]["sends"]["source->block0"])
        reports[feedback.consumer]["receives"][feedback.name] = {"waited_s": 0.5 * chain.now}
        for values in auto.orders(AUTO, reports).values():
            ordered |= values["capacities"].keys()
    assert ordered == {"source->block0", "block0->block1"}


def test_an_edge_of_which_one_end_says_nothing_keeps_its_size():
    chain, auto = Chain([jitter(seed) for seed in range(3)]), AutoBuffers(wiring(2))
    for _ in range(5):
        chain.run(1.0)
        reports = chain.reports()
        del reports["block1"]
        assert "block0" not in auto.orders(AUTO, reports)


@pytest.mark.parametrize("capacity", [1, 6])
def test_fixed_buffers_are_never_changed(capacity):
    chain = Chain([jitter(seed) for seed in range(3)], capacity)
    assert set(controlled(chain, 20, BuffersSection(capacity=capacity))) == {(capacity, capacity)}
