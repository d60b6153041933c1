"""T03, T06, T07, T17, T30 and what else must be true of synthetic gradients, on real blocks and programs."""

import pytest
import torch

from actors.errors import MispairedMessage
from actors.messages import Kind, Message
from tests.contract.plugin_chain import chain_config
from tests.methods.recorded_chain import RecordedChain
from tests.runs import Replacing, run

ADAM = {"name": "adam", "lr": 0.001}
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "synthesizer": ADAM}
MLP = {"name": "mlp", "widths": [24, 24, 24], "batch_norm": True}
CNN = {"name": "cnn", "channels": [6, 8, 8], "pool_after": [2]}


def chain_of(blocks=3, network=MLP, delay_per_hop=0, rule=None, optimizer=SGD, **sections):
    rule = {"name": "synthetic_gradients"} if rule is None else rule
    schedule = {"name": "pipeline", "delay_per_hop": delay_per_hop}
    network = {**network, "blocks": blocks}
    return RecordedChain(chain_config(rule=rule, network=network, schedule=schedule, optimizer=optimizer, **sections))


def feedback_edge(below, origin=None):
    return f"block{below + 1}->block{below}:feedback{below + 1 if origin is None else origin}"


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def moved(module, before):
    return any(not torch.equal(p, before[name]) for name, p in module.named_parameters())


def has_gradients(module):
    return any(p.grad is not None and p.grad.any() for p in module.parameters())


# ---------------------------------------------------------------- T03, T06: beside back-propagation


@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
def test_t06_with_an_oracle_for_a_synthesizer_every_weight_equals_backprops(network):
    """Bit for bit: with 32 samples, times and divided by the batch size cancel without rounding."""
    exact = chain_of(network=network, rule={"name": "backprop"})
    exact.train(0, 8)
    synthetic = chain_of(network=network)
    for below, block in enumerate(synthetic.blocks[:-1]):
        true = {m.batch_id: m.tensors["gradient"] for m in exact.sent[feedback_edge(below, origin=2)]}
        block.rule.predict = lambda p, true=true: true[p.batch.batch_id] * len(p.h)
    synthetic.train(0, 8)
    assert [body for body, _ in synthetic.digests()] == [body for body, _ in exact.digests()]
    for below in range(2):
        targets = [m.tensors["gradient"] for m in synthetic.sent[feedback_edge(below)]]
        gradients = [m.tensors["gradient"] for m in exact.sent[feedback_edge(below, origin=2)]]
        assert all(map(torch.equal, targets, gradients)) and all(target.any() for target in targets)


def test_t03_the_last_blocks_first_update_equals_backprops():
    synthetic, exact = chain_of(), chain_of(rule={"name": "backprop"})
    for chain in (synthetic, exact):
        chain.train(0, 1)
    assert synthetic.blocks[-1].digests() == exact.blocks[-1].digests()
    assert synthetic.blocks[0].digests() != exact.blocks[0].digests(), "its own gradient is not known yet"


def test_one_block_alone_is_backprop():
    synthetic, exact = chain_of(blocks=1), chain_of(blocks=1, rule={"name": "backprop"})
    for chain in (synthetic, exact):
        chain.train(0, 5)
    assert synthetic.digests() == exact.digests()


# ---------------------------------------------------------------- T07: the start at zero


def test_t07_the_first_update_of_every_block_but_the_last_is_exactly_zero():
    chain = chain_of(blocks=4)
    before = [weights(block.body) for block in chain.blocks]
    chain.train(0, 1)
    moves = [moved(block.body, was) for block, was in zip(chain.blocks, before, strict=True)]
    assert moves == [False, False, False, True]


@pytest.mark.parametrize(("num_batches", "awake"), [(1, [2]), (2, [1, 2]), (3, [0, 1, 2])])
def test_t07_synthesizers_wake_from_the_top_one_batch_after_another(num_batches, awake):
    """A target is the synthetic gradient of the block above, pulled through it: zero until that has woken."""
    chain = chain_of(blocks=4)
    before = [weights(block.rule) for block in chain.blocks]
    chain.train(0, num_batches)
    assert [j for j in range(3) if moved(chain.blocks[j].rule, before[j])] == awake


# ---------------------------------------------------------------- T30: scale


def two_blocks(batch):
    """The bottom block's and its synthesizer's gradients, and the message between, for one batch."""
    chain = chain_of(blocks=2)
    lower, upper = chain.blocks
    torch.nn.init.constant_(lower.rule.synthesizer.rest[-1].bias, 0.1)
    up = lower.now(batch).up
    down = upper.now(Message(Kind.ACTIVATION, 0, tensors={**batch.tensors, "h": up})).down[1]
    lower.later(1, Message(Kind.FEEDBACK, 0, tensors=down), 0)
    gradients = [{name: p.grad for name, p in m.named_parameters()} for m in (lower.body, lower.rule.synthesizer)]
    return gradients, down["gradient"]


def test_t30_doubling_the_batch_leaves_the_targets_scale_and_the_step_as_they_are():
    """Every sample twice: the mean loss is the same, and so must be what body and synthesizer follow."""
    batch = chain_of(blocks=2).message(0, False)
    twice = Message(batch.kind, 0, tensors={name: torch.cat([t, t]) for name, t in batch.tensors.items()})
    (body, model), gradient = two_blocks(batch)
    (body_of_twice, model_of_twice), gradient_of_twice = two_blocks(twice)
    assert torch.allclose(gradient_of_twice[: len(gradient)], gradient / 2, atol=1e-7), "what travels does shrink"
    for once, doubled in ((body, body_of_twice), (model, model_of_twice)):
        for name, value in once.items():
            assert torch.allclose(doubled[name], value, rtol=1e-4, atol=1e-6), name
    assert body["layers.0.1.weight"].abs().max() > 1e-3 and model["rest.2.bias"].abs().max() > 1e-3


# ---------------------------------------------------------------- who learns from what


@pytest.mark.parametrize("inputs", [False, True], ids=["", "synthetic inputs"])
def test_feedback_teaches_the_models_and_never_reaches_body_or_activation(inputs):
    chain = chain_of(rule={"name": "synthetic_gradients", "synthetic_inputs": inputs})
    block, message = chain.blocks[1], chain.message(0, False)
    real = torch.randn(32, *chain.plan.shapes[1], generator=torch.Generator().manual_seed(0))
    h = block.now(message if inputs else Message(message.kind, 0, tensors={**message.tensors, "h": real})).up
    p = block.open[0]
    assert not has_gradients(block.rule), "following a synthetic gradient teaches nobody"
    block.body.zero_grad(set_to_none=True)
    sent = [block.later(2, Message(Kind.FEEDBACK, 0, tensors={"gradient": torch.randn_like(h)}), 0)]
    if inputs:
        sent.append(block.late_activation(Message(Kind.ACTIVATION, 0, tensors={"h": real}), 0))
    assert [s.taught for s in sent] == ([False, True] if inputs else [True]), "once per batch"
    assert has_gradients(block.rule.synthesizer)
    assert (block.rule.input_model is not None and has_gradients(block.rule.input_model)) is inputs
    assert all(p.grad is None for p in block.body.parameters())
    assert not p.h.requires_grad and p.h.grad is None and p.entered.grad is None
    assert not block.open


def test_feedback_for_another_batch_or_a_second_time_raises_and_teaches_nothing():
    chain = chain_of()
    block = chain.blocks[0]
    h = block.now(chain.message(0, False)).up
    wrong = Message(Kind.FEEDBACK, 1, tensors={"gradient": torch.ones_like(h)})
    with pytest.raises(MispairedMessage, match=r"feedback from block 1 is for batch 1, expected batch 0"):
        block.later(1, wrong, 0)
    assert not has_gradients(block.rule)
    right = Message(Kind.FEEDBACK, 0, tensors={"gradient": torch.ones_like(h)})
    block.later(1, right, 0)
    with pytest.raises(MispairedMessage):
        block.later(1, right, 0)


@pytest.mark.parametrize(("delay_per_hop", "delay"), [(0, 1), (0.5, 1), (1, 2), (2, 3)])
def test_every_target_reaches_its_own_pass_with_the_declared_delay(delay_per_hop, delay):
    chain, taught = chain_of(delay_per_hop=delay_per_hop), {0: [], 1: []}
    for j in taught:
        watch_learning(chain.blocks[j], taught[j])
    chain.train(0, 8)
    for j, found in taught.items():
        assert [batch_id for batch_id, *_ in found] == list(range(8))
        for batch_id, version, h, target in found:
            assert version == min(batch_id + delay, 8)
            assert target is chain.sent[feedback_edge(j)][batch_id].tensors["gradient"]
            assert h is chain.sent[f"block{j}->block{j + 1}"][batch_id].tensors["h"]
        assert chain.blocks[j].synthesizer_updates == chain.blocks[j].updates == 8
        assert not chain.blocks[j].open


def watch_learning(block, found):
    def learn(p, learn=block.rule._learn):
        sent = learn(p)
        if sent.taught:
            found.append((p.batch.batch_id, block.version, p.h, p.kept["gradient"]))
        return sent

    block.rule._learn = learn


def test_a_synthesizer_explains_the_gradients_that_it_is_taught():
    """While the blocks keep still, its error falls below the targets' variance."""
    still = {"name": "sgd", "lr": 0.0, "synthesizer": {"name": "adam", "lr": 0.003}}
    chain, explained = chain_of(blocks=2, optimizer=still, training={"epochs": 20}), []
    rule = chain.blocks[0].rule

    def learn(p, learn=rule._learn):
        target = p.kept["gradient"] * len(p.h)
        error = (rule.predict(p) - target).square().sum()
        explained.append(float(1 - error / (target - target.mean(dim=0)).square().sum()))
        return learn(p)

    rule._learn = learn
    chain.train(0, 160)
    assert explained[0] <= 0, "it starts at zero"
    assert min(explained[-8:]) > 0.5, explained[-8:]


# ---------------------------------------------------------------- T17: it learns


def test_t17_conditioned_synthetic_gradients_beat_frozen_lower_blocks_on_digits(tmp_path):
    own = {
        "data": Replacing(name="digits", batch_size=32),
        "network": Replacing(name="mlp", widths=[32, 32, 32], batch_norm=True, blocks=4),
        "optimizer": Replacing(name="sgd", lr=0.02, momentum=0.9, schedule={"name": "cosine"}, synthesizer=ADAM),
        "evaluation": {"every_epochs": 0},
        "training": {"epochs": 4},
    }
    cdni = run(tmp_path / "cdni", **own, rule={"name": "synthetic_gradients"}, schedule={"delay_per_hop": 2})
    shallow = run(tmp_path / "shallow", **own, rule={"name": "backprop", "reach": 1})
    assert cdni.test_accuracy > shallow.test_accuracy + 0.05, (cdni.test_accuracy, shallow.test_accuracy)
