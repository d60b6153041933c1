"""T03, T04, T13, T14, T15: feedback alignment, sign symmetry and Kolen-Pollack are what they say."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from actors.nn.feedback_layers import drawn, feedback_layers
from tests.contract.plugin_chain import Chain, chain_config
from tests.methods.feedback_bodies import cosine
from tests.runs import config_of

FAMILY = [
    {"name": "feedback_alignment"},
    {"name": "kolen_pollack"},
    *({"name": "sign_symmetry", "variant": variant} for variant in ("usf", "frsf", "brsf")),
]


def named(rule):
    return " ".join(rule.values())


# ---------------------------------------------------------------- T03, T04: against back-propagation


def mlp(rule, **sections):
    return Chain(chain_config(rule=rule, **sections))


def cnn(rule, **sections):
    network = {"channels": [6, 8, 8], "pool_after": [2], "dropout": 0.2, "blocks": 3, **sections.pop("network", {})}
    return Chain(config_of("unused", network=network, rule=rule, **sections))


def cnn_with_biases(rule, **sections):
    return cnn(rule, network={"batch_norm": False}, **sections)


def transport(chain):
    """Keep every feedback matrix at its layer's weight; a new tensor each time, as old passes hold the old one."""

    def refresh(block):
        for _, layer in feedback_layers(block.body):
            layer.feedback.matrix = layer.weight.detach().clone()

    for block in chain.blocks:

        def update(flags, block=block, step=block.update):
            step(flags)
            refresh(block)

        refresh(block)
        block.update = update
    return chain


@pytest.mark.parametrize(
    "schedule", [{}, {"delay_per_hop": 2, "late": "stash"}, {"delay_per_hop": 1, "late": "recompute"}]
)
@pytest.mark.parametrize("network", [mlp, cnn, cnn_with_biases])
def test_feedback_alignment_with_the_weights_as_matrices_equals_back_propagation_bit_for_bit(network, schedule):
    rates = {"optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.5}, "schedule": schedule}
    backprop, transported = network({"name": "backprop"}, **rates), network({"name": "feedback_alignment"}, **rates)
    transport(transported)
    aligned = network({"name": "feedback_alignment"}, **rates)
    for chain in (backprop, transported, aligned):
        chain.train(0, 7)
    assert [block.digests() for block in transported.blocks] == [block.digests() for block in backprop.blocks]
    assert transported.losses == backprop.losses
    for with_weights, with_random in zip(transported.blocks, aligned.blocks, strict=True):
        assert with_weights.digests() != with_random.digests(), "the matrices matter in every block"


@pytest.mark.parametrize("rule", FAMILY, ids=named)
@pytest.mark.parametrize("network", [mlp, cnn_with_biases])
def test_the_last_layers_update_is_that_of_back_propagation_and_no_other_weights_is(network, rule):
    backprop, chain = network({"name": "backprop"}), network(rule)
    for each in (backprop, chain):
        each.train(0, 1)
    found = {name: digest for block in chain.blocks for name, digest in block.digests().items()}
    expected = {name: digest for block in backprop.blocks for name, digest in block.digests().items()}
    assert found.keys() == expected.keys()
    weights = [name for name in found if name.endswith("weight") and "output" not in name]
    assert weights and all(found[name] != expected[name] for name in weights)
    assert [found[name] for name in found if "output" in name] == [expected[name] for name in found if "output" in name]


def test_kolen_pollack_starts_as_feedback_alignment_and_leaves_it_with_its_first_update():
    training = {"epochs": 1, "accumulate": 2}
    chains = [mlp({"name": name}, training=training) for name in ("feedback_alignment", "kolen_pollack")]
    for chain in chains:
        chain.train(0, 2)
    assert [block.digests() for block in chains[0].blocks] == [block.digests() for block in chains[1].blocks]
    for chain in chains:
        chain.train(2, 4)
    assert [block.digests() for block in chains[0].blocks[:2]] != [block.digests() for block in chains[1].blocks[:2]]


@pytest.mark.parametrize("variant", ["usf", "frsf", "brsf"])
def test_signs_agree_with_the_weights_of_the_day(variant):
    chain = Chain(chain_config(rule={"name": "sign_symmetry", "variant": variant}))
    before = signs(chain)
    chain.train(0, 8)
    assert any(not torch.equal(a, b) for a, b in zip(before, signs(chain), strict=True)), "some sign has turned"
    for block in chain.blocks:
        for _, layer in feedback_layers(block.body):
            assert torch.equal(layer.feedback(layer.weight).sign(), layer.weight.sign())


def signs(chain):
    return [layer.weight.detach().sign() for block in chain.blocks for _, layer in feedback_layers(block.body)]


def test_clipping_bounds_the_step_of_weights_and_learned_matrices_together():
    """Each has a gradient of its own: one that both shared would be scaled twice, and the step too short."""
    rate, bound = 0.5, 0.01
    chain = mlp({"name": "kolen_pollack"}, optimizer={"name": "sgd", "lr": rate, "clip": bound})
    before = [[p.detach().clone() for p in block.body.parameters()] for block in chain.blocks]
    chain.train(0, 1)
    for block, old in zip(chain.blocks, before, strict=True):
        squares = [(p - q).detach().square().sum() for p, q in zip(block.body.parameters(), old, strict=True)]
        assert float(sum(squares)) == pytest.approx((rate * bound) ** 2, rel=1e-3)


# ---------------------------------------------------------------- T13, T15: alignment


@pytest.mark.parametrize("seed", [1, 5])
def test_the_updates_of_feedback_alignment_turn_towards_those_of_back_propagation(seed):
    """The weights agree with the matrices that trained them, and with no others: the control stays near 90."""
    one_block = {"name": "mlp", "widths": [48, 48], "activation": "tanh", "blocks": 1}
    rates = {"optimizer": {"name": "sgd", "lr": 0.4}, "training": {"epochs": 12}}
    chain = mlp({"name": "feedback_alignment"}, seed=seed, network=one_block, **rates)
    start = angles(chain.blocks[0].body, chain.batches.batch(0))
    chain.train(0, 96)
    end = angles(chain.blocks[0].body, chain.batches.batch(0))
    assert start.keys() == end.keys() == {"hidden1.1", "hidden2.0"}
    assert all(70 < angle < 110 for angle in start.values()), start
    assert all(angle < 65 for angle in end.values()), end
    for _, layer in feedback_layers(chain.blocks[0].body):
        layer.feedback.matrix = drawn(layer.weight, 0.1, torch.Generator().manual_seed(seed))
    others = angles(chain.blocks[0].body, chain.batches.batch(0))
    assert all(70 < angle < 110 for angle in others.values()), others


def angles(body, batch):
    """Return the angle in degrees between the two rules' gradients of every hidden layer, at the same weights."""
    aligned, exact = copy.deepcopy(body), copy.deepcopy(body)
    for _, layer in feedback_layers(exact):
        layer.feedback.matrix = layer.weight.detach().clone()
    for each in (aligned, exact):
        nn.functional.cross_entropy(each(batch.inputs), batch.labels).backward()
    pairs = zip(feedback_layers(aligned), feedback_layers(exact), strict=True)
    cosines = {name: cosine(a.weight.grad, b.weight.grad) for (name, a), (_, b) in pairs}
    assert cosines.pop("output") > 0.9999, "the last layer's gradient is exact"
    return {name: math.degrees(math.acos(value)) for name, value in cosines.items()}


@pytest.mark.parametrize(
    "schedule", [{}, {"delay_per_hop": 2, "late": "stash"}, {"delay_per_hop": 2, "late": "recompute"}]
)
def test_learned_matrices_approach_the_weights_by_the_decay_and_by_nothing_else(schedule):
    decay, rate = 0.2, 0.05
    optimizer = {"name": "sgd", "lr": rate, "weight_decay": decay, "clip": 1.0}
    chain = mlp({"name": "kolen_pollack"}, schedule=schedule, optimizer=optimizer)
    history = [distances(chain)]
    for block in chain.blocks:

        def update(flags, step=block.update):
            step(flags)
            history.append(distances(chain))

        block.update = update
    before = [layer.feedback.matrix.clone() for block in chain.blocks for _, layer in feedback_layers(block.body)]
    chain.train(0, 12)
    after = [layer.feedback.matrix for block in chain.blocks for _, layer in feedback_layers(block.body)]
    for old, new in zip(before, after, strict=True):
        decayed = old * (1 - rate * decay) ** 12
        assert float((new - decayed).detach().norm() / old.detach().norm()) > 0.02, "they learn"
    for name, start in history[0].items():
        series = [distance[name] for distance in history]
        assert all(later <= earlier for earlier, later in pairwise(series)), "monotonically"
        assert series[-1] == pytest.approx(start * (1 - rate * decay) ** 12, rel=1e-4)


def distances(chain):
    return {
        name: float((layer.weight - layer.feedback.matrix).detach().norm())
        for block in chain.blocks
        for name, layer in feedback_layers(block.body)
    }


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("rule", FAMILY, ids=named)
def test_feedback_matrices_and_draws_do_not_depend_on_cuts(rule):
    chains = [cnn(rule, network={"blocks": blocks}) for blocks in (1, 2, 4)]
    for chain in chains:
        chain.train(0, 4)
    states = [
        ({k: v for b in chain.blocks for k, v in b.digests().items()},
         {k: v for b in chain.blocks for k, v in b.auxiliary_digests().items()})
        for chain in chains
    ]  # fmt: skip
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("rule", FAMILY, ids=named)
def test_what_is_exported_is_the_plain_network_and_what_is_kept_holds_the_matrices(rule):
    plain, chain = cnn({"name": "backprop"}), cnn(rule)
    for with_feedback, without in zip(chain.blocks, plain.blocks, strict=True):
        assert with_feedback.digests() == without.digests()
        names = with_feedback.auxiliary_state().keys()
        kept = [name for name in names if name.startswith("feedback.")]
        expected = 0 if rule.get("variant") in ("usf", "brsf") else len(list(feedback_layers(with_feedback.body)))
        assert len(kept) == expected


@pytest.mark.parametrize("rule", FAMILY, ids=named)
def test_a_snapshot_brings_the_matrices_to_a_block_that_drew_others(rule):
    sections = {"optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 0.01}}
    original, restored = cnn(rule, **sections), cnn(rule, **sections)
    for block in restored.blocks:
        for tensor in block.body.auxiliary_state().values():
            tensor.data.mul_(-1)
    original.train(0, 3)
    if any(block.body.auxiliary_state() for block in original.blocks):
        assert original.digests() != restored.digests()
    restored.restore_from(original)
    for chain in (original, restored):
        chain.train(3, 6)
    assert original.digests() == restored.digests()
