"""Mixed precision and compilation in a block: nothing but fp32 leaves it, and no factor."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from actors import precision as precision_module
from actors.block import Block
from actors.messages import Flags, Kind, Message
from actors.objectives.cross_entropy import CrossEntropy
from actors.optimizers import GroupOptimizer, OptimizerSpec
from actors.plugins import plugin_names
from actors.precision import SMALLEST_FACTOR, Precision, accumulate
from orchestrator.plan import make_plan
from orchestrator.specs import block_spec
from tests.conftest import ROOT
from tests.methods.recorded_chain import (
    CNN,
    RecordedChain,
    assert_compiled_layers_follow_plain_ones,
    cnn_config,
    equal,
    whole,
)
from tests.methods.test_reach import reaching

BACKPROP = {"name": "backprop"}
FLAT = {**CNN, "dropout": 0.0}
RESTING = {"name": "sgd", "lr": 0.0}


def trained(precision, *, rule=BACKPROP, num_batches=4, factor=None, **sections):
    training = {"epochs": 3, "precision": precision, **sections.pop("training", {})}
    chain = RecordedChain(cnn_config(rule=rule, network=FLAT, training=training, **sections))
    for block in chain.blocks:
        if factor is not None:
            block.precision.factor = factor
    chain.train(0, num_batches)
    return chain


# ---------------------------------------------------------------- what leaves a block


@pytest.mark.parametrize("rule", [BACKPROP, reaching(2)], ids=["backprop", "overlapping"])
def test_the_factor_never_leaves_a_block(rule):
    """Messages and gradients are those of fp32 but for rounding, and hardly depend on the factor."""
    exact = trained("fp32", rule=rule, optimizer=RESTING)
    large, small = (trained("fp16", rule=rule, optimizer=RESTING, factor=2.0**power) for power in (16, 4))
    for other, tolerance in ((exact, 0.12), (small, 1e-3)):
        assert large.feedback() == other.feedback()
        for edge in other.feedback():
            for got, expected in zip(large.sent[edge], other.sent[edge], strict=True):
                assert close(got.tensors["gradient"], expected.tensors["gradient"], tolerance)
        for j in range(4):
            pairs = [*zip(large.gradients[j], other.gradients[j], strict=True)]
            pairs += zip(large.head_gradients[j], other.head_gradients[j], strict=True)
            assert all(close(whole(got), whole(expected), tolerance) for got, expected in pairs if expected)


def close(got, expected, tolerance=0.12):
    """Rounding turns a ReLU or a maximum over now and then, which shows in a few per cent of the norm."""
    assert torch.isfinite(got).all()
    return float((got - expected).norm()) < tolerance * float(expected.norm())


@pytest.mark.parametrize("rule", [BACKPROP, {"name": "local"}, reaching(2)], ids=["backprop", "local", "overlapping"])
def test_everything_that_travels_is_fp32_although_the_arithmetic_is_not(rule):
    chain = RecordedChain(cnn_config(rule=rule, network=FLAT, training={"epochs": 1, "precision": "fp16"}))
    computed = set()
    for block in chain.blocks:
        for layer in block.body.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.register_forward_hook(lambda module, inputs, output: computed.add(output.dtype))
    message = chain.message(0, False)
    for block in chain.blocks:
        up, _ = block.evaluate(Message(Kind.EVALUATION, 0, tensors=message.tensors, split="test"))
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in up.values())
        message = Message(Kind.EVALUATION, 0, tensors=up)
    chain.train(0, 3)
    assert computed == {torch.float16}
    sent = [tensor.dtype for messages in chain.sent.values() for m in messages for tensor in m.tensors.values()]
    assert set(sent) == {torch.float32, torch.int64}
    assert all(p.dtype is torch.float32 for block in chain.blocks for _, p in block.named_parameters())
    assert all(gradient.dtype is torch.float32 for found in chain.gradients for g in found for gradient in g.values())


def test_a_frozen_block_passes_fp32_on():
    settings = {"schedule": {"name": "sequential"}, "rule": {"name": "local"}}
    chain = RecordedChain(cnn_config(network=FLAT, training={"epochs": 1, "precision": "fp16"}, **settings))
    h = chain.blocks[0].forward_frozen(chain.message(0, False))
    assert h.dtype is torch.float32


def test_a_heads_loss_is_not_rounded():
    """Scores leave the head in fp32, so that the loss of many samples is not a sum of fp16."""
    chain = trained("fp16", rule={"name": "local"}, num_batches=1)
    block, h = chain.blocks[0], torch.randn(64, *chain.plan.shapes[1])
    assert isinstance(block.objective, CrossEntropy)
    with block.precision.autocast():
        assert block.objective.scores(h).dtype is torch.float32
        loss = block.objective(h, Message(Kind.ACTIVATION, 0, tensors={}) and labelled(64))
    assert loss.dtype is torch.float32


def labelled(count):
    from actors.learning_rule import Batch

    return Batch(0, 0, {"labels": torch.zeros(count, dtype=torch.long)})


# ---------------------------------------------------------------- the factor


class Half(nn.Module):
    """y = w x in fp16, and its gradient."""

    def __init__(self, *weights):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([list(weights)]))

    def pulled(self, precision, x, credit):
        x = torch.tensor(x).requires_grad_()
        with precision.autocast():
            y = nn.functional.linear(x, self.weight)
        assert y.dtype is torch.float16
        return precision.gradients([y], [self.weight, x], [torch.tensor(credit)], keep=False)


def fp16(factor=2.0**16):
    precision = Precision("fp16", "cpu")
    precision.factor = factor
    return precision


def test_a_credit_too_small_for_fp16_survives_by_the_factor():
    layer = Half(2.0)
    _, lost = layer.pulled(fp16(1.0), [[1.0]], [[1e-9]])
    _, kept = layer.pulled(fp16(), [[1.0]], [[1e-9]])
    assert float(lost) == 0.0
    assert float(kept) == pytest.approx(2e-9, rel=0.05)


@pytest.mark.parametrize("credit", [1.0, 40.0, 2.0**15])
def test_an_overflow_halves_the_factor_and_the_result_is_finite_and_exact(credit):
    """Powers of two: as long as nothing rounds to zero every factor gives the same bits."""
    precision = fp16()
    weight, x = Half(1.5).pulled(precision, [[2.0]], [[credit]])
    assert (float(weight), float(x)) == (2 * credit, 1.5 * credit)
    assert precision.factor < 2.0**16 and math.log2(precision.factor).is_integer()
    assert 2 * credit * precision.factor <= 65504 < 4 * credit * precision.factor
    assert precision.num_good == 1


def test_a_credit_beyond_fp16_is_pulled_back_with_a_factor_below_one():
    precision = fp16()
    weight, _ = Half(0.5).pulled(precision, [[1.0]], [[2.0**20]])
    assert float(weight) == 2.0**20 and precision.factor < 1.0


@pytest.mark.parametrize("credit", [float("inf"), float("nan")])
def test_what_is_not_finite_at_any_factor_is_shown_and_costs_the_factor_nothing(credit):
    precision = fp16(2.0**10)
    weight, _ = Half(0.5).pulled(precision, [[1.0]], [[credit]])
    assert not math.isfinite(float(weight))
    assert (precision.factor, precision.num_good) == (2.0**10, 0)


def test_an_infinite_output_ends_the_search_too():
    precision = fp16(2.0**10)
    Half(6e4).pulled(precision, [[6e4]], [[1.0]])
    assert precision.factor == 2.0**10 > SMALLEST_FACTOR


def test_the_factor_doubles_after_enough_backward_passes_without_an_overflow(monkeypatch):
    monkeypatch.setattr(precision_module, "GROW_AFTER", 3)
    precision, layer = fp16(2.0**4), Half(0.5)
    factors = []
    for credit in (1.0, 1.0, 1.0, 1.0, 3e4, 1.0, 1.0, 1.0):
        layer.pulled(precision, [[1.0]], [[credit]])
        factors.append(math.log2(precision.factor))
    assert factors == [4, 4, 5, 5, 1, 1, 2, 2]


def test_fp32_and_bf16_have_no_factor():
    assert Precision("fp32", "cpu").factor == Precision("bf16", "cpu").factor == 1.0


def test_the_factor_and_its_count_are_part_of_a_snapshot():
    chain = trained("fp16", num_batches=3)
    for block in chain.blocks:
        block.precision.factor, block.precision.num_good = 2.0**7, 41
    fresh = RecordedChain(chain.config)
    fresh.restore_from(chain)
    assert [(b.precision.factor, b.precision.num_good) for b in fresh.blocks] == [(2.0**7, 41)] * 4


def test_training_in_fp16_ends_near_fp32():
    exact, half = (trained(name, num_batches=16) for name in ("fp32", "fp16"))
    assert half.losses[-1] == pytest.approx(exact.losses[-1], rel=0.05)
    assert half.digests() != exact.digests()
    assert sum(half.losses[-1][-4:]) < 0.9 * sum(half.losses[-1][:4])


@pytest.mark.parametrize("late", ["stash", "recompute"])
def test_late_and_accumulated_credit_in_fp16_is_that_of_fp32_but_for_rounding(late):
    settings = {"schedule": {"delay_per_hop": 2, "late": late}, "training": {"accumulate": 2}, "optimizer": RESTING}
    exact, half = (trained(name, num_batches=6, **settings) for name in ("fp32", "fp16"))
    assert [block.updates for block in half.blocks] == [3] * 4
    for j in range(4):
        assert all(close(whole(g), whole(e)) for g, e in zip(half.gradients[j], exact.gradients[j], strict=True))


@pytest.mark.parametrize("rule", plugin_names("rule"))
def test_every_rule_in_fp16_follows_what_it_follows_in_fp32_but_for_rounding(rule):
    """While weights rest; synthesizers, which begin at zero, learn."""
    optimizer = {**RESTING, "synthesizer": {"lr": 0.1}}
    exact, half = (trained(name, rule={"name": rule}, num_batches=5, optimizer=optimizer) for name in ("fp32", "fp16"))
    assert all(block.precision.dtype is torch.float16 for block in half.blocks)
    for got, expected in zip(half.gradients, exact.gradients, strict=True):
        assert len(got) == len(expected) == 5 and whole(expected[-1]).any()
        assert all(close(whole(g), whole(e)) for g, e in zip(got, expected, strict=True) if whole(e).any())
        assert not equal(got[-1], expected[-1])


# ---------------------------------------------------------------- gradients of parameters


def test_gradients_add_up():
    weight = nn.Parameter(torch.ones(2))
    for value in (1.0, 2.0):
        accumulate([weight, nn.Parameter(torch.ones(1))], [torch.full((2,), value), None])
    assert weight.grad is not None and weight.grad.tolist() == [3.0, 3.0]


def test_two_parameters_that_are_added_are_clipped_as_in_plain_training():
    """Autograd gives both the same tensor; clipped in place, it would be clipped twice."""

    def stepped(pull):
        a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
        pull([a, b], ((a + b) * torch.tensor([3.0, 4.0, 12.0])).sum())
        GroupOptimizer(OptimizerSpec("sgd", {"lr": 1.0}, clip=0.5), [a, b]).step(0, 2)
        return [a.tolist(), b.tolist()]

    def ours(parameters, loss):
        accumulate(parameters, torch.autograd.grad(loss, parameters))

    assert stepped(ours) == stepped(lambda parameters, loss: loss.backward())


def test_a_gradient_that_repeats_one_number_can_be_averaged_in_place():
    """The gradient of a sum is one number seen many times, which nothing may write to."""
    weight = nn.Parameter(torch.zeros(4))
    accumulate([weight], torch.autograd.grad(weight.sum(), [weight]))
    GroupOptimizer(OptimizerSpec("sgd", {"lr": 1.0}), [weight]).step(0, 2)
    assert weight.tolist() == [-0.5] * 4


# ---------------------------------------------------------------- bf16

BF16 = """
import torch
torch.set_num_threads(1)
from actors.plugins import plugin_names
from tests.methods.test_precision import RESTING, close, reaching, trained, whole
optimizer = {**RESTING, "synthesizer": {"lr": 0.1}}  # synthesizers begin at zero
for rule in (*({"name": name} for name in plugin_names("rule")), reaching(2)):
    exact, half = (trained(name, rule=rule, optimizer=optimizer) for name in ("fp32", "bf16"))
    for got, expected in zip(half.gradients, exact.gradients, strict=True):
        assert len(got) == len(expected) == 4, rule
        assert all(close(whole(g), whole(e), 0.3) for g, e in zip(got, expected, strict=True) if whole(e).any()), rule
    for edge, messages in half.sent.items():
        for got, expected in zip(messages, exact.sent[edge], strict=True):
            assert all(t.dtype in (torch.float32, torch.int64) for t in got.tensors.values()), edge
            found = {n: (got.tensors[n], t) for n, t in expected.tensors.items() if n != "labels" and t.any()}
            assert all(close(a, b, 0.3) for a, b in found.values()), (rule, edge)
schedule = {"delay_per_hop": 2, "late": "recompute"}
exact, half = (trained(name, num_batches=16, schedule=schedule) for name in ("fp32", "bf16"))
assert half.digests() != exact.digests()
assert sum(half.losses[-1][-4:]) < 0.95 * sum(half.losses[-1][:4])
again = trained("bf16", num_batches=16, schedule=schedule)
assert again.digests() == half.digests()
print("bf16 is fine")
"""


def test_bf16_trains_near_fp32_and_sends_fp32():
    """Its own process: oneDNN reads once which instructions it may use, and not every machine has those it picks."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BF16]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    assert done.stdout.strip().endswith("bf16 is fine"), done.stderr[-3000:]


# ---------------------------------------------------------------- compiled layers


@pytest.fixture
def traced_only(monkeypatch):
    """Layers are traced and cut into graphs as torch.compile does, without the minutes of a C++ compiler."""
    compiled, original = [], torch.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda call: original(call, backend=backend))
    torch._dynamo.reset()
    yield compiled
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("late", ["stash", "recompute"])
def test_compiled_layers_meet_late_credit_as_plain_ones_do(traced_only, late):
    settings = {"schedule": {"delay_per_hop": 1, "late": late}, "network": {**CNN, "channels": [4, 4], "blocks": 2}}
    plain, compiled = (
        RecordedChain(cnn_config(rule=BACKPROP, training={"epochs": 1, "compile": compile}, **settings))
        for compile in (False, True)
    )
    plain.train(0, 4)
    assert not traced_only
    compiled.take_over_after(2)
    compiled.train(0, 4)
    assert traced_only
    for j in range(2):
        for got, expected in zip(compiled.gradients[j], plain.gradients[j], strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("rule", plugin_names("rule"))
def test_every_rule_follows_in_compiled_layers_what_it_follows_in_plain_ones(traced_only, rule):
    network = {**CNN, "channels": [4, 4], "blocks": 3}  # every block has a layer to compile
    assert_compiled_layers_follow_plain_ones(traced_only, 2, at_least=3, rule={"name": rule}, network=network)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_every_layer_of_a_long_block_is_compiled(traced_only):
    """All layers share one entry in torch's cache, whose limit would leave those beyond it uncompiled in silence.

    Layers of the same shape share their code, so these differ.
    """
    network = {"name": "mlp", "widths": [*range(5, 17)], "blocks": 1}
    config = cnn_config(rule={"name": "local"}, network=network, training={"epochs": 1, "compile": True})
    plan = make_plan(config)
    block = Block(block_spec(config, plan, 0, "run", None), plan.shapes[0])
    h = torch.randn(8, *plan.shapes[0])
    message = Message(Kind.ACTIVATION, 0, Flags.NONE, tensors={"h": h, "labels": torch.zeros(8, dtype=torch.long)})
    block.now(message)
    assert len(block.body.layers) >= 13
    assert len(traced_only) >= 13
    before = len(traced_only)
    block.evaluate(Message(Kind.EVALUATION, 0, tensors=message.tensors, split="test"))
    assert len(traced_only) - before >= 13


@pytest.mark.parametrize("compile", [True, False])
def test_a_block_says_which_steps_may_compile(monkeypatch, compile):
    """The first of every kind and size; nobody then takes it for a process that hangs."""
    monkeypatch.setattr(torch, "compile", lambda call: call)
    config = cnn_config(rule={"name": "local"}, training={"epochs": 1, "compile": compile})
    plan = make_plan(config)
    block = Block(block_spec(config, plan, 0, "run", None), plan.shapes[0])
    said = []

    def step(size, kind=Kind.ACTIVATION):
        tensors = {"h": torch.randn(size, *plan.shapes[0]), "labels": torch.zeros(size, dtype=torch.long)}
        message = Message(kind, len(said), Flags.NONE, tensors=tensors, split="test")
        (block.now if kind is Kind.ACTIVATION else block.evaluate)(message)
        said.append(block.may_compile)

    for size, kind in [(8, Kind.ACTIVATION), (8, Kind.ACTIVATION), (8, Kind.EVALUATION), (5, Kind.ACTIVATION)] * 2:
        step(size, kind)
    assert said == [compile, False, compile, compile] + [False] * 4


def test_gradients_of_two_precisions_differ():
    """Else the comparisons above would say nothing."""
    exact, half = (trained(name, num_batches=1, optimizer=RESTING) for name in ("fp32", "fp16"))
    assert not equal(exact.gradients[0][0], half.gradients[0][0])
