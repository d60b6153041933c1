"""The predicted time per batch against what the longest cycle of each rule's dependencies takes.

Notation: f and b, a block's forward and backward time; m, a message's; s, the delay per hop; K blocks, and
h(j) = K - 1 - j hops from the last one to block j, whose feedback is D(j) = 1 + floor(s h(j)) batches late.
F_j(t), B_j(t): block j's forward and backward step of batch t. No chain is faster than its busiest block, nor
than any cycle of steps that wait for each other: the cycle's time, divided by the batches it moves on by.
"""

from itertools import pairwise

import pytest
import torch
from torch import nn

from actors.errors import RunError
from actors.learning_rule import Batch
from actors.module_pass import Late, ModulePass
from actors.needs import feedback_delay
from actors.networks.body import Body
from actors.networks.layer import Layer
from actors.precision import Precision
from orchestrator import event_model
from orchestrator.event_model import predict
from orchestrator.timed_block import Costs, TimedPass
from orchestrator.timed_chain import run_all

K = 8
F, B = 1.0, 2.0
OVERLAPPING = {"reach": 2, "losses": "every"}


def theory_backprop(m, s):
    """B_i(t) -> B_j(t), down n hops -> F_j(t + D(j)) -> F_i(t + D(j)), up again -> B_i(t + D(j) + 1 - D(i)).

    n + 1 blocks work forwards and backwards and 2 n messages travel while the batch moves on by
    1 + D(j) - D(i). At s = 0 the whole chain is one such cycle of one batch; at s = 1 the longest one takes
    K (f + b) + 2 (K - 1) m for K batches; at s = 2 the busiest block is slower than any cycle if m < (f + b) / 2.
    """
    delay = [feedback_delay(K - 1 - j, s) for j in range(K)]
    cycles = [
        ((i - j + 1) * (F + B) + 2 * (i - j) * m) / (1 + delay[j] - delay[i]) for i in range(K) for j in range(i + 1)
    ]
    return max(cycles)


def theory_local(m, s):
    """Nothing flows back, so no cycle but a block's own."""
    return F + B


def theory_overlapping(m, s):
    """Here a block pulls back twice: its own loss to its input at once, b / 2, and both losses to its weights, b.

    later_j(t) -> F_j(t + D) -> F_(j+1)(t + D), what it pulls back at once -> later_j(t + D), D = 1 + floor(s);
    the activation leaves between the two, and the last block pulls back all at once, b.
    """
    return max(F + B / 2 + B, (B + 2 * F + B + 2 * m) / feedback_delay(1, s))


def theory_reach_3(m, s):
    """A block pulls back three times: its own loss and the next one's to its input, b / 2 each, all to its weights, b.

    The longest cycle is that of the last three blocks: later_(K-3)(t) -> F_(K-3) -> F_(K-2) -> F_(K-1)(t + D), then the
    last one pulls back all at once, b, and block K - 2 to its input and its weights, b / 2 + b, before it sends;
    D = 1 + floor(2 s), feedback of two hops.
    """
    return max(F + B / 2 + B / 2 + B, (B + 3 * F + B + B / 2 + B + 4 * m) / feedback_delay(2, s))


def theory_recompute(m, s):
    """As back-propagation, but every block with late credit pays another f before its b."""
    delay = [feedback_delay(K - 1 - j, s) for j in range(K)]
    cost = [F + F + B] * (K - 1) + [F + B]
    cycles = [
        (sum(cost[j : i + 1]) + 2 * (i - j) * m) / (1 + delay[j] - delay[i]) for i in range(K) for j in range(i + 1)
    ]
    return max(cycles)


def theory_dfa(m, s):
    """B_j(t) -> F_j(t + D(j)) -> ... -> the last block's F and B -> error -> B_j(t + D(j)): h + 1 messages."""
    cycles = [(B + (h + 1) * F + B + (h + 1) * m) / feedback_delay(h, s) for h in range(1, K)]
    return max(F + B, *cycles)


def theory_dni(m, s):
    """A synthesizer waits for what the neighbour finds at once: F_j, F_(j+1), B_(j+1) and two messages for D."""
    return max(F + B, (2 * F + B + 2 * m) / feedback_delay(1, s))


def theory_dni_fully_unlocked(m, s):
    """As DNI, but F_(j+1) waits for the activation of the batch before (E = 1): D + 1 batches."""
    return max(F + B, (2 * F + B + 2 * m) / (feedback_delay(1, s) + 1))


RULES = {
    "backprop": ("backprop", {}, 64, theory_backprop),
    "feedback_alignment": ("feedback_alignment", {}, 64, theory_backprop),
    "sign_symmetry": ("sign_symmetry", {}, 64, theory_backprop),
    "kolen_pollack": ("kolen_pollack", {}, 64, theory_backprop),
    "local": ("local", {}, 32, theory_local),
    "drtp": ("drtp", {}, 32, theory_local),
    "forward_forward": ("forward_forward", {}, 32, theory_local),
    "overlapping": ("backprop", OVERLAPPING, 64, theory_overlapping),
    "interlocking": ("backprop", {**OVERLAPPING, "combine": "farthest"}, 64, theory_overlapping),
    "reach 3": ("backprop", {**OVERLAPPING, "reach": 3}, 64, theory_reach_3),
    "direct_feedback_alignment": ("direct_feedback_alignment", {}, 32, theory_dfa),
    "dni": ("synthetic_gradients", {}, 16, theory_dni),
    "dni_fully_unlocked": ("synthetic_gradients", {"synthetic_inputs": True}, 16, theory_dni_fully_unlocked),
}


@pytest.mark.parametrize("s", [0, 1, 2])
@pytest.mark.parametrize("m", [0.0, 0.3])
@pytest.mark.parametrize("name", RULES)
def test_the_predicted_period_is_that_of_the_longest_cycle(name, m, s):
    rule, settings, num_batches, theory = RULES[name]
    got = predict(rule, settings, num_blocks=K, delay_per_hop=s, message_s=m, num_batches=num_batches)
    assert got.period_s == pytest.approx(theory(m, s), rel=0.005)


@pytest.mark.parametrize("s", [1, 2])
@pytest.mark.parametrize("m", [0.0, 0.3])
def test_a_second_forward_pass_lengthens_every_cycle_by_it(m, s):
    got = predict("backprop", num_blocks=K, delay_per_hop=s, late="recompute", message_s=m, num_batches=112)
    assert got.period_s == pytest.approx(theory_recompute(m, s), rel=0.005)


@pytest.mark.parametrize(("s", "m", "period"), [(0, 0.0, 5.0), (0, 0.3, 5.6), (1, 0.3, 3.0), (2, 0.3, 3.0)])
def test_overlapping_updates_pay_for_no_pass_twice_where_weights_and_input_each_cost_half(s, m, period):
    """The costs of `tests/benchmarks/overlap.py`: b / 2 + f + f + b + 2 m for D batches, and a block's own f + b."""
    halves = Costs(F, B, input_share=0.5, weights_share=0.5)
    got = predict("backprop", OVERLAPPING, num_blocks=K, delay_per_hop=s, message_s=m, costs=halves, num_batches=32)
    assert got.period_s == pytest.approx(period, rel=1e-9)


@pytest.mark.parametrize("s", [0.5, 1.5])
def test_a_delay_of_half_a_batch_per_hop_is_rounded_down_block_by_block(s):
    got = predict("backprop", num_blocks=K, delay_per_hop=s, message_s=0.3)
    assert got.period_s == pytest.approx(theory_backprop(0.3, s), rel=0.005)


@pytest.mark.parametrize(
    ("rule", "settings", "s", "m", "period"),
    [
        ("backprop", {}, 0, 0.0, 24.0),
        ("backprop", {}, 1, 0.0, 3.0),
        ("backprop", {}, 1, 0.3, 3.525),
        ("backprop", {}, 2, 0.3, 3.0),
        ("synthetic_gradients", {}, 2, 0.3, 3.0),
        ("direct_feedback_alignment", {}, 2, 0.3, 3.0),
        ("local", {}, 0, 0.3, 3.0),
        ("backprop", OVERLAPPING, 0, 0.0, 6.0),
        ("backprop", OVERLAPPING, 2, 0.3, 4.0),
    ],
)
def test_eight_blocks_take_the_known_times(rule, settings, s, m, period):
    got = predict(rule, settings, num_blocks=8, delay_per_hop=s, message_s=m, num_batches=32)
    assert got.period_s == pytest.approx(period, rel=1e-9)


def test_lockstep_takes_the_whole_way_for_every_batch():
    """There and back through the chain, then word to the source and the next batch from it: 2 K messages."""
    got = predict("backprop", num_blocks=K, schedule="lockstep", message_s=0.3, num_batches=16)
    assert got.period_s == pytest.approx(K * (F + B) + 2 * K * 0.3)


def test_a_second_forward_pass_is_paid_for_by_all_but_the_last_block():
    got = predict("backprop", num_blocks=K, delay_per_hop=2, late="recompute", message_s=0.3)
    assert got.period_s == pytest.approx(F + F + B)
    assert got.shares[-1]["compute"] == pytest.approx(got.shares[1]["compute"] * 3 / 4, rel=0.05)


def test_update_and_loss_add_to_a_blocks_time():
    got = predict("local", num_blocks=3, costs=Costs(update=0.5, loss=0.25))
    assert got.period_s == pytest.approx(F + B + 0.75)


def test_the_slowest_block_sets_the_pace_and_the_others_wait():
    costs = [Costs(), Costs(), Costs(forward=2, backward=4), Costs()]
    got = predict("local", num_blocks=4, costs=costs, num_batches=200)
    assert got.period_s == pytest.approx(6.0)
    assert got.shares[2]["compute"] > 0.98
    assert 0.45 < got.shares[1]["wait_output"] < 0.5, "those below it find no room"
    assert 0.45 < got.shares[3]["wait_input"] < 0.55, "those above it find no input"


@pytest.mark.parametrize(("capacity", "period"), [(1, 12.0), (2, 6.0), (3, 4.0), (4, 3.0), (8, 3.0)])
def test_a_slow_message_is_hidden_by_as_many_as_the_edge_holds(capacity, period):
    """An edge of capacity c moves c messages in the time m of one: max(f + b, m / c)."""
    got = predict("local", num_blocks=3, message_s=12.0, capacity=capacity)
    assert got.period_s == pytest.approx(period)


@pytest.mark.parametrize("s", [2, 3])
@pytest.mark.parametrize("rule", ["backprop", "direct_feedback_alignment", "synthetic_gradients"])
def test_late_feedback_neither_stops_nor_slows_a_chain_with_the_smallest_buffers(rule, s):
    got = predict(rule, num_blocks=K, delay_per_hop=s, message_s=0.3, capacity=1, num_batches=24)
    assert got.period_s == pytest.approx(3.0)


def test_without_room_for_late_feedback_the_smallest_buffers_stop_the_chain(monkeypatch):
    """Block j + 1 must send feedback of a batch that block j reads s batches later, after s more activations."""
    monkeypatch.setattr(event_model, "edge_capacities", lambda edges, settings, room: dict.fromkeys(edges, 1))
    assert predict("backprop", num_blocks=4, delay_per_hop=2, message_s=0.3).period_s == pytest.approx(3.0)
    with pytest.raises(RunError, match=r"nothing can advance: .*block0 on block0->block1"):
        predict("backprop", num_blocks=4, delay_per_hop=3, message_s=0.3)


@pytest.mark.parametrize("capacity", [1, 4])
def test_the_raw_input_of_a_late_block_does_not_hold_up_the_first_one(capacity):
    got = predict("local", objective="infopro", num_blocks=16, message_s=0.3, capacity=capacity)
    assert got.period_s == pytest.approx(F + B)


def test_with_synthetic_inputs_the_last_block_starts_with_the_first():
    plain = predict("synthetic_gradients", num_blocks=K, message_s=0.3, num_batches=4)
    unlocked = predict("synthetic_gradients", {"synthetic_inputs": True}, num_blocks=K, message_s=0.3, num_batches=4)
    assert plain.starts[-1][0] == pytest.approx((K - 1) * F + K * 0.3), "an activation leaves before its block learns"
    assert unlocked.starts[-1][0] == unlocked.starts[0][0] == pytest.approx(0.3)


def test_times_do_not_depend_on_whose_turn_it_is(monkeypatch):
    kwargs = {"num_blocks": 5, "delay_per_hop": 1, "message_s": 0.3, "capacity": 2, "num_batches": 24}
    forwards = predict("direct_feedback_alignment", **kwargs)
    monkeypatch.setattr(event_model, "run_all", lambda actors, edges: run_all(actors[::-1], edges))
    assert predict("direct_feedback_alignment", **kwargs) == forwards


def test_a_prediction_leaves_the_random_state_and_the_number_of_threads_alone():
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    predict("synthetic_gradients", num_blocks=3, num_batches=8)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 2


def test_spans_fill_an_actors_time_without_overlap():
    got = predict("backprop", num_blocks=3, delay_per_hop=1, message_s=0.3, num_batches=24)
    for index, shares in enumerate(got.shares):
        spans = got.spans[f"block{index}"]
        assert sum(shares.values()) == pytest.approx(1.0)
        assert all(a[4] <= b[3] for a, b in pairwise(spans))
        total = sum(span[4] - span[3] for span in spans)
        assert total == pytest.approx(spans[-1][4]), "no gaps: the program itself takes no time"
        computed = sum(span[4] - span[3] for span in spans if span[0] == "compute")
        assert computed == pytest.approx(24 * (F + B))
        work = {span[1] for span in spans if span[0] == "compute"}
        assert work == ({"forward", "feedback"} if index < 2 else {"forward", "learn"})


# ---------------------------------------------------------------- the passes cost what the real ones do


class Forward(torch.autograd.Function):
    """The identity; counts its runs, and half a backward pass for the input's gradient."""

    @staticmethod
    def forward(ctx, x, spend):
        ctx.spend = spend
        spend(F)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        ctx.spend(B / 2)
        return g, None


class Weight(torch.autograd.Function):
    """The identity on a weight; counts half a backward pass for its gradient."""

    @staticmethod
    def forward(ctx, w, spend):
        ctx.spend = spend
        return w.clone()

    @staticmethod
    def backward(ctx, g):
        ctx.spend(B / 2)
        return g, None


class Counting(nn.Module):
    def __init__(self, spend):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.spend = spend

    def forward(self, x):
        return Forward.apply(x, self.spend) * Weight.apply(self.weight, self.spend)


ALL, INPUT, WEIGHTS = (True, True, False), (False, True, False), (True, False, False)
INPUT_FIRST = (False, True, True)
"""(weights, input, keep) of a call."""

PULLS = {
    "once": [ALL],
    "weights only": [WEIGHTS],
    "input, then weights": [INPUT_FIRST, WEIGHTS],
    "input, then all": [INPUT_FIRST, ALL],
    "twice without keeping": [INPUT, WEIGHTS],
    "three": [INPUT_FIRST, INPUT_FIRST, WEIGHTS],
}


@pytest.mark.parametrize("settled", [0, 1])
@pytest.mark.parametrize("late", Late)
@pytest.mark.parametrize("pulls", PULLS)
def test_a_timed_pass_takes_the_time_of_a_real_one(late, pulls, settled):
    """`settled`: how many of the credits come before the pass settles, as the rule's own do."""
    spent = {"real": 0.0, "timed": 0.0}

    def spending(kind):
        def spend(seconds):
            spent[kind] += seconds

        return spend

    x, batch = torch.ones(2, 4), Batch(0, 0)
    body = Body([Layer("one", lambda: Counting(spending("real")), "one.")], seed=0)
    real = ModulePass(body, x, batch, late=late, input_gradient=True, precision=Precision("fp32", "cpu"))
    costs = Costs(forward=F, backward=B, input_share=0.5, weights_share=0.5)
    timed = TimedPass(x, batch, late, (4,), costs, spending("timed"))
    for count, (weights, input, keep) in enumerate(PULLS[pulls]):
        gradients = []
        for p in (real, timed):
            if count == settled:
                p.settle()
            gradients.append(p.vjp(torch.ones(2, 4), weights=weights, input=input, keep=keep))
        assert (gradients[0] is None) == (gradients[1] is None)
        assert spent["timed"] == spent["real"]
    assert spent["real"] >= F + B / 2
