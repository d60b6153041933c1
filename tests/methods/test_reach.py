"""Back-propagation within a reach (T02, T10, T11, T25, T26): the settings of Laskin, Gomez and the shallow baseline."""

from pathlib import Path

import pytest
import torch
import yaml

from actors.errors import UserError
from actors.messages import Flags, Kind, Message
from actors.needs import Place
from actors.plugins import find_plugin
from orchestrator.catalog import find_catalog
from orchestrator.config import load_runs
from tests.conftest import ROOT
from tests.contract.plugin_chain import Chain, chain_config
from tests.methods.recorded_chain import PlainTraining, RecordedChain, cnn_config, equal, whole
from tests.methods.scalar_blocks import HEADS, WEIGHTS, one_sample
from tests.parity.test_autograd import digest, plain_training
from tests.runs import Replacing, config_of, run

BLOCKS, UPDATES = 4, 6
LR_ZERO = {"name": "sgd", "lr": 0.0}


def reaching(reach=None, losses="every", combine="sum"):
    return {"name": "backprop", "reach": reach, "losses": losses, "combine": combine}


def trained(rule, num_batches=UPDATES, **sections):
    chain = RecordedChain(cnn_config(rule=rule, **sections))
    chain.train(0, num_batches)
    return chain


def reference(follow, num_batches=UPDATES, **sections):
    """The same modules under autograd alone, every block with a loss of its own."""
    plain = PlainTraining(cnn_config(rule={"name": "local"}, **sections), follow)
    plain.train(num_batches)
    return plain


def bodies(digests):
    return [body for body, _ in digests]


# ---------------------------------------------------------------- the configs


METHODS = {
    "overlapping_local": (2, "every", "sum"),
    "interlocking": (2, "every", "farthest"),
    "shallow": (1, "last", "sum"),
    "pipelined_backprop": (None, "last", "sum"),
    "features_replay": (None, "last", "sum"),
}


def method(name):
    return Path(ROOT / "configs" / "methods" / f"{name}.yaml")


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_file_holds_the_papers_setting(name):
    (config,) = load_runs([ROOT / "configs" / "digits_cnn.yaml", method(name)], [], find_catalog())
    settings = find_plugin("rule", config.rule.name).Config(**config.rule.options)
    assert (settings.reach, settings.losses, settings.combine) == METHODS[name]
    late = {"pipelined_backprop": (2, "stash"), "features_replay": (2, "recompute")}
    assert (config.schedule.delay_per_hop, config.schedule.late) == late.get(name, (0, None))


def test_chunked_local_is_two_blocks_that_follow_their_own_losses():
    (config,) = load_runs([ROOT / "configs" / "digits_cnn.yaml", method("chunked_local")], [], find_catalog())
    assert config.network.blocks == 2 and config.rule.name == "local"


@pytest.mark.parametrize("name", [*METHODS, "chunked_local", "greedy_layerwise", "backprop", "dgl"])
def test_with_one_block_every_method_is_plain_training(tmp_path, name):
    sections = yaml.safe_load(method(name).read_text())
    sections["network"] = {"blocks": 1}
    expected, num_updates = plain_training(config_of(tmp_path / "plain", **sections))
    summary = run(tmp_path / "actors", **sections)
    assert summary.weights_sha256 == digest(expected)
    assert summary.blocks[0]["updates"] == num_updates > 20


# ---------------------------------------------------------------- n-wise


@pytest.mark.parametrize("distance", [0, 1, 2, BLOCKS - 1])
def test_n_wise_follows_only_the_loss_that_many_blocks_ahead_bit_for_bit(distance):
    chain = trained(reaching(distance + 1, combine="farthest"))
    plain = reference(lambda j: [min(j + distance, BLOCKS - 1)])
    assert chain.digests() == plain.digests()
    assert chain.digests() != Chain(cnn_config(rule=reaching(1))).digests()


def test_n_wise_of_nothing_is_the_local_rule_bit_for_bit():
    local = trained({"name": "local"})
    for combine in ("sum", "farthest"):
        assert trained(reaching(1, combine=combine)).digests() == local.digests()


@pytest.mark.parametrize("reach", [BLOCKS, BLOCKS + 3, None])
def test_n_wise_of_everything_is_backprop_on_the_bodies_while_heads_train_on_their_own_losses(reach):
    everything = trained(reaching(reach, combine="farthest"))
    assert bodies(everything.digests()) == bodies(trained({"name": "backprop"}).digests())
    heads = [auxiliary for _, auxiliary in everything.digests()]
    assert heads == [auxiliary for _, auxiliary in reference(lambda j: [BLOCKS - 1]).digests()]
    start = [auxiliary for _, auxiliary in Chain(cnn_config(rule=reaching(reach))).digests()]
    assert all(end != begin for end, begin in zip(heads[:-1], start[:-1], strict=True))


# ---------------------------------------------------------------- sums


@pytest.mark.parametrize("reach", [2, 3, None])
def test_a_gradient_is_the_sum_of_those_of_all_losses_in_reach(reach):
    chain = trained(reaching(reach), num_batches=2, optimizer=LR_ZERO)
    furthest = BLOCKS if reach is None else reach
    plain = reference(lambda j: range(j, min(j + furthest, BLOCKS)), num_batches=2, optimizer=LR_ZERO)
    for j in range(BLOCKS):
        assert len(chain.gradients[j]) == 2
        for got, expected in zip(chain.gradients[j], plain.gradients[j], strict=True):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_a_shared_blocks_gradient_is_its_own_losses_plus_the_next_ones():
    """T11, in the words of LoCo: two unit gradients."""
    both = trained(reaching(2), 1).gradients
    own = trained(reaching(1), 1).gradients
    following = trained(reaching(2, combine="farthest"), 1).gradients
    for j in range(BLOCKS - 1):
        torch.testing.assert_close(whole(both[j][0]), whole(own[j][0]) + whole(following[j][0]), atol=1e-6, rtol=1e-5)
        assert not torch.allclose(whole(own[j][0]), whole(following[j][0]), rtol=0.1)
    assert equal(both[-1][0], own[-1][0])


# ---------------------------------------------------------------- T10: how far a loss reaches


@pytest.mark.parametrize("combine", ["sum", "farthest"])
@pytest.mark.parametrize("reach", [1, 2, 3])
def test_a_gradient_depends_on_the_last_block_in_reach_and_on_none_above(reach, combine):
    def gradients(changed=None):
        chain = RecordedChain(cnn_config(rule=reaching(reach, combine=combine)))
        if changed is not None:
            with torch.no_grad():
                for module in (chain.blocks[changed].body, chain.blocks[changed].objective):
                    for parameter in module.parameters():
                        parameter.add_(0.05 * torch.ones_like(parameter))
        chain.train(0, 1)
        return [found[0] for found in chain.gradients]

    before, after = gradients(), [gradients(changed) for changed in range(BLOCKS)]
    for j in range(BLOCKS):
        if j + reach - 1 < BLOCKS:
            assert not equal(after[j + reach - 1][j], before[j])
        assert all(equal(after[above][j], before[j]) for above in range(j + reach, BLOCKS))


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (reaching(1), [[], [], []]),
        (reaching(2), [[1], [2], [3]]),
        (reaching(3), [[1, 2], [2, 3], [3]]),
        (reaching(None), [[1, 2, 3], [2, 3], [3]]),
        (reaching(2, combine="farthest"), [[1], [2], [3]]),
        (reaching(3, combine="farthest"), [[2], [2, 3], [3]]),
        (reaching(None, combine="farthest"), [[3], [3], [3]]),
        (reaching(1, losses="last"), [[], [], []]),
        (reaching(2, losses="last"), [[], [], [3]]),
        (reaching(None, losses="last"), [[3], [3], [3]]),
    ],
)
def test_one_message_per_batch_travels_for_every_loss_that_somebody_below_follows(rule, expected):
    chain = trained(rule, num_batches=3)
    wanted = {f"block{j + 1}->block{j}:feedback{origin}": 3 for j, origins in enumerate(expected) for origin in origins}
    assert chain.feedback() == wanted
    declared = [[late.origin for late in edges.late] for edges in chain.plan.wiring.blocks]
    assert declared == [*expected, []]
    assert {edge.name for edge in chain.plan.wiring.edges if "feedback" in edge.name} == wanted.keys()
    for edge in wanted:
        assert [message.batch_id for message in chain.sent[edge]] == [0, 1, 2]
        assert all(message.tensors.keys() == {"gradient"} for message in chain.sent[edge])


# ---------------------------------------------------------------- T26: cosines


def cosines(rule, num_batches=1):
    exact = reference(lambda j: [BLOCKS - 1], num_batches, optimizer=LR_ZERO).gradients
    got = trained(rule, num_batches, optimizer=LR_ZERO).gradients
    pairs = [(whole(g[-1]), whole(e[-1])) for g, e in zip(got, exact, strict=True)]
    return [float(torch.cosine_similarity(g, e, dim=0)) for g, e in pairs]


@pytest.mark.parametrize("reach", [1, 2, 3, None])
def test_blocks_that_follow_the_last_loss_have_backprops_gradient_and_only_they(reach):
    found = cosines(reaching(reach, combine="farthest"))
    exact = BLOCKS if reach is None else reach
    assert found[BLOCKS - exact :] == pytest.approx([1.0] * exact, abs=1e-5)
    assert all(cosine < 0.9 for cosine in found[: BLOCKS - exact])


def test_a_body_that_follows_the_next_loss_too_is_nearer_to_backprops_gradient_the_nearer_it_is_to_the_output():
    own, both = cosines(reaching(1)), cosines(reaching(2))
    assert both[-1] == pytest.approx(1.0, abs=1e-5)
    assert 0.9 > both[-2] > max(0.3, own[-2], *both[:-2]), (own, both)


# ---------------------------------------------------------------- by hand


def scalar_chain(rule, lr=0.1):
    config = chain_config(
        data={"name": "generated", "shape": [1, 1, 1], "classes": 2, "size": 8, "batch_size": 1},
        network={"factory": "tests.methods.scalar_blocks:network", "cuts": ["2", "3"]},
        objective={"factory": "tests.methods.scalar_blocks:HalfSquare"},
        optimizer={"name": "sgd", "lr": lr},
        rule=rule,
    )
    chain = Chain(config)
    tensors = {"h": one_sample(), "labels": torch.zeros(1, dtype=torch.long)}
    chain.message = lambda batch_id, is_last: Message(Kind.ACTIVATION, batch_id, 0, Flags.LAST, tensors)
    return chain


BY_HAND = {
    "own losses": (reaching(1), (4, 1, 24)),
    "the next loss": (reaching(2, combine="farthest"), (1.5, 8, 24)),
    "own and next": (reaching(2), (5.5, 9, 24)),
    "the farthest of three": (reaching(3, combine="farthest"), (12, 8, 24)),
    "the sum of three": (reaching(3), (17.5, 9, 24)),
    "the last loss": (reaching(None, losses="last"), (12, 8, 24)),
    "the last loss, two blocks down": (reaching(2, losses="last"), (0, 8, 24)),
    "the last block only": (reaching(1, losses="last"), (0, 0, 24)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_one_step_of_three_scalar_blocks_equals_the_hand_computation(name):
    """x = 1, h = (2, 6, 6), a h - 2 = (2, 1, 4); see the factors in scalar_blocks."""
    rule, gradients = BY_HAND[name]
    chain = scalar_chain(rule)
    chain.train(0, 1)
    got = [next(block.body.parameters()).item() for block in chain.blocks]
    assert got == pytest.approx([w - 0.1 * g for w, g in zip(WEIGHTS, gradients, strict=True)])
    heads = [block.objective for block in chain.blocks[:-1]]
    if rule["losses"] == "every":
        assert [head.head.weight.item() for head in heads] == pytest.approx([HEADS[0] - 0.4, HEADS[1] - 0.6])
    else:
        assert heads == [None, None]


# ---------------------------------------------------------------- shallow


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    ],
    ids=["sgd", "adamw"],
)
def test_shallow_never_moves_a_parameter_below_the_last_block_by_weight_decay_either(optimizer):
    config = cnn_config(rule=reaching(1, losses="last"), optimizer=optimizer)
    chain, start = RecordedChain(config), Chain(config)
    chain.train(0, UPDATES)
    for block, fresh in zip(chain.blocks, start.blocks, strict=True):
        pairs = zip(block.body.named_parameters(), fresh.body.named_parameters(), strict=True)
        moved = [name for (name, got), (_, was) in pairs if not torch.equal(got, was)]
        assert bool(moved) == block.place.is_last, moved
    assert all(block.objective is None for block in chain.blocks[:-1])
    assert not chain.feedback()


def test_shallow_and_local_remove_both_locks_and_longer_reaches_none():
    rule = find_plugin("rule", "backprop")
    for losses in ("last", "every"):
        assert rule.locks_removed(rule.Config(reach=1, losses=losses)) == ("update", "backward")
        for reach in (2, None):
            assert rule.locks_removed(rule.Config(reach=reach, losses=losses)) == ()
    needs = [rule.needs(rule.Config(reach=1), Place(index, 3)) for index in range(3)]
    assert [need.origins for need in needs] == [(), (), ()] and [need.objective for need in needs] == [
        False,
        False,
        True,
    ]


# ---------------------------------------------------------------- what is declared


def test_feedback_that_reaches_only_the_upper_blocks_may_be_delayed_but_not_be_sequential():
    """Reach 2 of the last loss: the middle of a long chain has no feedback, the block below the last one has."""
    rule = reaching(2, losses="last")
    config = cnn_config(rule=rule, schedule={"delay_per_hop": 1, "late": "stash"})
    chain = RecordedChain(config)
    chain.train(0, UPDATES)
    assert [block.updates for block in chain.blocks] == [UPDATES] * BLOCKS
    with pytest.raises(UserError, match=r"schedule\.name: got 'sequential' .*feedback comes from next_block"):
        cnn_config(rule=rule, schedule={"name": "sequential"})


@pytest.mark.parametrize("key", ["delay_per_hop", "late"])
def test_a_delay_of_credit_that_never_comes_is_refused(key):
    with pytest.raises(UserError, match=rf"schedule\.{key}: got .* with rule 'backprop'.*leave the key out"):
        cnn_config(rule=reaching(1), schedule={key: {"delay_per_hop": 1, "late": "stash"}[key]})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"reach": 0}, r"rule\.reach: got 0, expected at least 1"),
        ({"losses": "all"}, r"rule\.losses: got 'all', expected 'last' or 'every'"),
        ({"combine": "mean"}, r"rule\.combine: got 'mean', expected 'sum' or 'farthest'"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused_in_one_sentence(setting, message):
    with pytest.raises(UserError, match=message):
        cnn_config(rule={"name": "backprop", **setting})


def test_reach_works_at_uneven_cuts_over_runs_that_evaluate(tmp_path):
    network = Replacing({"name": "cnn", "channels": [6, 8, 8], "pool_after": [2], "cuts": ["conv2", "output"]})
    summary = run(tmp_path / "run", rule=reaching(2), network=network)
    assert [block["updates"] for block in summary.blocks] == [22, 22, 22]
    assert all(edge["in_flight"] == edge["buffered"] == 0 for edge in summary.edges)
    assert all(block["test_accuracy"] is not None for block in summary.blocks)
