"""Prediction and similarity matching, InfoPro, AugLocal: that each computes what its paper says, and stays local."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from actors.block import Block
from actors.datasets.batches import EvalBatches
from actors.datasets.loading import load_data
from actors.errors import UserError
from actors.learning_rule import Around, Batch
from actors.messages import Flags, Kind, Message
from actors.needs import Place
from actors.nn.decoder import Pixels, decoder
from actors.nn.similarity import label_similarity, sample_vectors, similarity_matrix
from actors.objectives.cross_entropy import CrossEntropy
from actors.objectives.infopro import InfoPro
from actors.objectives.prediction_similarity import PredictionSimilarity
from orchestrator.plan import make_plan
from orchestrator.specs import block_spec, data_spec
from tests.runs import Replacing, block_weights, config_of, run

OBJECTIVES = ["prediction_similarity", "infopro", "auglocal"]
NETWORKS = {
    "cnn": {"name": "cnn", "channels": [6, 8, 8], "pool_after": [2], "blocks": 4},
    "mlp": {"name": "mlp", "widths": [24, 20, 16], "batch_norm": True, "blocks": 4},
    "vgg": {"name": "vgg", "depth": 11, "width": 0.125, "blocks": 7},
    "resnet": {"name": "resnet", "depth": 14, "width": 4, "blocks": 8},
}
LABELS = torch.tensor([0, 2, 1, 2, 0, 3, 3, 1])


def blocks_of(folder, objective, network="cnn", **sections):
    if isinstance(objective, str):
        objective = {"name": objective}
    if isinstance(network, str):
        network = NETWORKS[network]
    config = config_of(folder, objective=objective, network=Replacing(network), **sections)
    plan = make_plan(config)
    specs = [block_spec(config, plan, index, "run", None) for index in range(len(plan.blocks))]
    return [Block(spec, shape) for spec, shape in zip(specs, plan.shapes, strict=True)]


def images(batch_id=0, count=8, shape=(2, 8, 8)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(batch_id))


def feed(blocks, batch_id=0, labels=LABELS):
    """One batch through all blocks, as the chain would bring it; returns the losses."""
    raw = images(batch_id)
    h = raw
    for block in blocks:
        sent = block.now(Message(Kind.ACTIVATION, batch_id, tensors={"h": h, "labels": labels}), raw)
        assert sent.complete and not sent.down
        h = sent.up
    return [float(block.loss) for block in blocks]


def batch_of(labels=LABELS, raw=None, batch_id=0):
    return Batch(batch_id, batch_id, {"labels": labels} | ({} if raw is None else {"raw_input": raw}))


# ---------------------------------------------------------------- all three


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_block_of_every_network_trains_and_evaluates(tmp_path, objective, network):
    blocks = blocks_of(tmp_path, objective, network)
    before = [[p.detach().clone() for p in block.body.parameters()] for block in blocks]
    for batch_id in range(2):
        losses = feed(blocks, batch_id)
        assert all(math.isfinite(loss) and loss > 0 for loss in losses)
        for block in blocks:
            assert all(p.grad is not None for p in block.body.parameters()), "every weight of the body has credit"
            block.update(Flags.NONE)
    for block, weights in zip(blocks, before, strict=True):
        assert not weights or any(not torch.equal(a, b) for a, b in zip(weights, block.body.parameters(), strict=True))
    message = Message(Kind.EVALUATION, 1, flags=Flags.SPLIT_END, tensors={"h": images(9), "labels": LABELS})
    for block in blocks:
        up, evaluation = block.evaluate(message)
        scores = block.objective.eval().scores(up["h"]).detach()
        assert scores.shape == (8, 4)
        assert evaluation.sums["num_samples"] == 8
        assert evaluation.sums["correct"] == (scores.argmax(1) == LABELS).sum()
        expected = functional.cross_entropy(scores, LABELS, reduction="sum")
        assert evaluation.sums["loss"] == pytest.approx(float(expected), rel=1e-5), "the loss is summed"
        assert "ensemble_correct" in evaluation.sums
        message = Message(Kind.EVALUATION, 1, flags=Flags.SPLIT_END, tensors=up)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_block_without_labels_cannot_train(tmp_path, objective):
    for index, block in enumerate(blocks_of(tmp_path, objective)):
        h = images() if index == 0 else torch.randn(8, *block._around.body_input_shape)
        with pytest.raises(KeyError, match="labels"):
            block.now(Message(Kind.ACTIVATION, 0, tensors={"h": h}), images())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_last_blocks_loss_is_the_networks_own_cross_entropy(tmp_path, objective):
    last = blocks_of(tmp_path, objective)[-1]
    assert not list(last.objective.parameters())
    scores = torch.randn(8, 4)
    assert last.objective(scores, batch_of()) == functional.cross_entropy(scores, LABELS)
    assert torch.equal(last.objective.scores(scores), scores)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_block_learns_alike_whatever_the_block_above_does_and_nothing_flows_back(tmp_path, objective):
    """T09, T25."""
    sections = {"objective": {"name": objective}, "training": {"epochs": 1}, "data": {"size": 64}}
    learns = run(tmp_path / "a", **sections)
    rests = run(tmp_path / "b", **sections, optimizer={"blocks": {1: {"lr": 0.0}}})
    assert learns.status == "completed"
    assert block_weights(learns)[0] == block_weights(rests)[0]
    assert block_weights(learns)[1] != block_weights(rests)[1], "the intervention was one"
    raw = {"source->block1:raw", "source->block2:raw"} if objective == "infopro" else set()
    line = {"source->block0", "block0->block1", "block1->block2"}
    assert {edge["name"] for edge in learns.edges} == line | raw, "forwards only"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_cuts_above_a_block_change_nothing_in_it(tmp_path, objective):
    """The first convolution is a block by itself in all; AugLocal's depth is the full one there."""
    cuts = (["conv2", "conv4"], ["conv2", "conv3", "conv4", "output"])
    network = {"name": "cnn", "channels": [6, 8, 8, 8], "pool_after": [2], "dropout": 0.3}
    chains = [blocks_of(tmp_path, objective, {**network, "cuts": names}) for names in cuts]
    for blocks in chains:
        torch.manual_seed(len(blocks))  # the global generator is another every time
        for batch_id in range(3):
            feed(blocks, batch_id)
            blocks[0].update(Flags.NONE)
    first, second = (blocks[0] for blocks in chains)
    assert first.digests() == second.digests()
    assert first.auxiliary_digests() == second.auxiliary_digests()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_fp32_under_mixed_precision(tmp_path, objective):
    plain, mixed = (blocks_of(tmp_path, objective, training={"precision": p}) for p in ("fp32", "bf16"))
    assert feed(mixed) == pytest.approx(feed(plain), rel=0.1)
    assert all(block.loss.dtype is torch.float32 for block in mixed)


# ---------------------------------------------------------------- prediction and similarity matching


def similarity_block(shape=(12,), **settings):
    torch.manual_seed(0)
    return PredictionSimilarity(PredictionSimilarity.Config(**settings), Place(0, 3), Around(shape, 4))


def test_the_similarity_matrix_of_one_hot_labels_is_block_wise():
    same = LABELS[:, None] == LABELS[None, :]
    plain = label_similarity(LABELS, 4, adjusted=False)
    assert torch.allclose(plain, same.float()), "0 and 1"
    adjusted = label_similarity(LABELS, 4)
    assert torch.allclose(adjusted, torch.where(same, 1.0, -1 / 3), atol=1e-6)
    for matrix in (plain, adjusted):
        assert torch.allclose(matrix.diag(), torch.ones(8))


def test_similarities_are_cosines_of_centred_rows():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    expected = torch.corrcoef(x)
    assert torch.allclose(similarity_matrix(x), expected, atol=1e-6)
    assert not torch.allclose(similarity_matrix(x, adjusted=False), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        ("adjusted", torch.eye(4).repeat(1, 3)),
        ("cosine", torch.tensor([[1.0, 1, 1, 1, -1, -1, -1, -1], [1, 1, -1, -1, 1, 1, -1, -1],
                                 [1, -1, 1, -1, 1, -1, 1, -1], [1, -1, -1, 1, -1, 1, 1, -1]])),
    ],
)  # fmt: skip
def test_the_similarity_loss_of_perfect_clusters_is_zero_and_of_mixed_ones_is_not(kind, classes):
    objective = similarity_block((classes.shape[1],), label_similarity=kind)
    h = 3 * classes[LABELS] + 2  # neither scale nor offset matters
    assert objective.similarity_loss(h, LABELS) < 1e-12
    assert objective.similarity_loss(h, LABELS.roll(1)) > 0.1


def test_feature_maps_are_compared_by_their_standard_deviations():
    maps = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    vectors = sample_vectors(maps)
    assert vectors.shape == (3, 5)
    assert torch.allclose(vectors[1, 2], maps[1, 2].flatten().std())
    shift = torch.randn(3, 5, 1, 1)
    assert torch.allclose(sample_vectors(2 * maps + shift), 2 * vectors, atol=1e-5)
    assert sample_vectors(maps[:, :, :1, :1]).shape == (3, 5), "one pixel has no deviation"
    assert sample_vectors(maps[:, :2]).shape == (3, 48), "too few maps"


def test_images_pass_a_convolution_before_they_are_compared():
    objective = similarity_block((6, 5, 5))
    h = torch.randn(8, 6, 5, 5)
    assert objective.features.weight.shape == (6, 6, 3, 3)
    found = similarity_matrix(sample_vectors(objective.features(h)))
    expected = functional.mse_loss(found, label_similarity(LABELS, 4))
    assert torch.equal(objective.similarity_loss(h, LABELS), expected)
    expected.backward()
    assert objective.features.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(12,), (6, 5, 5)], ids=str)
def test_an_output_that_is_all_alike_has_a_finite_gradient(shape):
    h = torch.zeros(8, *shape, requires_grad=True)
    similarity_block(shape)(h, batch_of()).backward()
    assert h.grad.isfinite().all()


@torch.no_grad()
def test_both_losses_are_weighed_and_the_head_starts_at_even_odds():
    """T18 for the cross-entropy."""
    objective, h = similarity_block((6, 5, 5), beta=0.75), torch.randn(8, 6, 5, 5)
    similarity = objective.similarity_loss(h, LABELS)
    assert float(objective(h, batch_of())) == pytest.approx(0.25 * math.log(4) + 0.75 * float(similarity), rel=1e-6)
    assert torch.equal(objective.scores(h), torch.zeros(8, 4))
    assert similarity_block((6, 5, 5), beta=1.0)(h, batch_of()) == similarity
    assert PredictionSimilarity.Config().beta == 0.99


def test_with_beta_0_the_block_learns_as_with_plain_cross_entropy_from_zero(tmp_path):
    similar = blocks_of(tmp_path, {"name": "prediction_similarity", "beta": 0.0})
    plain = blocks_of(tmp_path, {"name": "cross_entropy", "head": {"kind": "linear"}})
    for block in plain[:-1]:
        nn.init.zeros_(block.objective.head[-1].weight)
        nn.init.zeros_(block.objective.head[-1].bias)
    for batch_id in range(3):
        assert feed(similar, batch_id) == feed(plain, batch_id)
        for block in (*similar, *plain):
            block.update(Flags.NONE)
    assert [block.digests() for block in similar] == [block.digests() for block in plain]


# ---------------------------------------------------------------- InfoPro


def test_without_reconstruction_infopro_is_greedy_learning_bit_for_bit(tmp_path):
    sections = {"training": {"epochs": 1}, "data": {"size": 64}}
    info = run(tmp_path / "a", objective={"name": "infopro", "lambda1": [0, 0], "lambda2": [1, 1]}, **sections)
    greedy = run(tmp_path / "b", **sections)
    assert block_weights(info) == block_weights(greedy)
    drawn = run(tmp_path / "c", objective={"name": "infopro", "lambda1": [1, 1], "lambda2": [1, 1]}, **sections)
    assert block_weights(drawn)[0] != block_weights(greedy)[0]


def test_the_reconstructions_target_is_the_datasets_own_pixels(tmp_path):
    blocks = blocks_of(tmp_path, "infopro", data=Replacing(name="digits", batch_size=16))
    config = config_of(tmp_path, data=Replacing(name="digits", batch_size=16))
    split = load_data(data_spec(config)).train
    batch = EvalBatches(split, 64).batch(0)
    pixels = split.inputs[batch.sample_ids]
    assert not torch.allclose(batch.inputs, pixels, atol=0.1), "what the network gets is normalised"
    for block in blocks[:-1]:
        assert torch.allclose(block.objective.pixels(batch.inputs), pixels, atol=1e-6)
        h = torch.randn(64, *block._around.shape)
        expected = functional.binary_cross_entropy_with_logits(block.objective.decoder(h), pixels)
        assert torch.allclose(block.objective.reconstruction_loss(h, batch.inputs), expected)


def test_pixels_undo_each_channels_normalisation_and_are_cut_off():
    mean, std = (0.25, 0.5), (0.5, 2.0)
    constant = torch.full((3, 2, 4, 4), 0.75)
    normalised = (constant - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    assert torch.equal(Pixels(mean, std, 3)(normalised), constant)
    assert torch.equal(Pixels((), (), 1)(torch.tensor([[-1.0, 0.25, 3.0]])), torch.tensor([[0.0, 0.25, 1.0]]))


@pytest.mark.parametrize(("shape", "raw"), [((2, 8, 8), (2, 8, 8)), ((128,), (2, 8, 8)), ((24,), (24,))], ids=str)
def test_the_decoder_learns_to_draw_what_an_identity_passes_on(shape, raw):
    torch.manual_seed(0)
    objective = InfoPro(InfoPro.Config(lambda2=(0.0, 1.0)), Place(0, 3), Around(shape, 4, raw, raw))
    optimizer = torch.optim.Adam(objective.decoder.parameters(), lr=0.2)
    target = torch.rand(32, *raw).round()
    batch = batch_of(LABELS.repeat(4), target)
    losses = []
    for _ in range(80):
        loss = objective(target.view(32, *shape), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 5 * 0.5, "about 5 log 2 at the start"
    assert losses[-1] < 0.1 * losses[0], losses[::10]


@pytest.mark.parametrize("shape", [(3, 2, 5), (3, 1, 1), (3, 9, 9), (7,)], ids=str)
def test_the_decoder_draws_in_the_inputs_shape(shape):
    assert decoder(shape, (2, 6, 7))(torch.randn(4, *shape)).shape == (4, 2, 6, 7)


def test_every_block_draws_the_networks_input_not_its_own(tmp_path):
    blocks = blocks_of(tmp_path, "infopro")
    h = torch.randn(8, *blocks[1]._around.body_input_shape)
    message = Message(Kind.ACTIVATION, 0, tensors={"h": h, "labels": LABELS})
    losses = []
    for raw in (images(0), images(0), -images(0)):
        again = blocks_of(tmp_path, "infopro")[1]
        again.now(message, raw)
        losses.append(float(again.loss))
    assert losses[0] == losses[1] != losses[2]


def test_the_decoders_gradient_trains_its_own_block(tmp_path):
    """And no other: there is no message that could carry it (see the test of edges)."""
    block = blocks_of(tmp_path, {"name": "infopro", "lambda2": [0.0, 0.0]})[1]
    before = block.auxiliary_digests()
    h = torch.randn(8, *block._around.body_input_shape)
    sent = block.now(Message(Kind.ACTIVATION, 0, tensors={"h": h, "labels": LABELS}), images())
    block.update(Flags.LAST)
    assert not sent.down and not block.sends_gradient
    changed = {name for name, digest in block.auxiliary_digests().items() if digest != before[name]}
    decoders = {f"objective.decoder.{name}" for name, _ in block.objective.decoder.named_parameters()}
    assert decoders <= changed
    assert not any(name.startswith("objective.head") for name in changed), "without cross-entropy the head rests"


def test_the_weights_of_both_losses_are_interpolated_up_to_the_last_but_one(tmp_path):
    config = InfoPro.Config(lambda1=(5, 0.5), lambda2=(0.2, 1.4))
    found = [InfoPro(config, Place(index, 5), Around((6,), 4, (6,), (6,))) for index in range(4)]
    assert [objective.lambda1 for objective in found] == pytest.approx([5, 3.5, 2, 0.5])
    assert [objective.lambda2 for objective in found] == pytest.approx([0.2, 0.6, 1.0, 1.4])
    alone = InfoPro(config, Place(0, 2), Around((6,), 4, (6,), (6,)))
    assert (alone.lambda1, alone.lambda2) == (5, 0.2)


@torch.no_grad()
def test_both_parts_are_in_the_loss():
    torch.manual_seed(0)
    around = Around((6, 4, 4), 4, (2, 8, 8), (2, 8, 8))
    objective = InfoPro(InfoPro.Config(lambda1=(3, 3), lambda2=(0.5, 1)), Place(0, 3), around)
    h, batch = torch.randn(8, 6, 4, 4), batch_of(raw=images())
    drawn = objective.reconstruction_loss(h, batch.raw_input)
    predicted = functional.cross_entropy(objective.scores(h), LABELS)
    assert float(objective(h, batch)) == pytest.approx(3 * float(drawn) + 0.5 * float(predicted), rel=1e-6)


@pytest.mark.parametrize(("key", "value"), [("lambda1", [0, 1]), ("lambda2", [-1, 1]), ("lambda1", [1])])
def test_weights_that_leave_no_loss_or_are_malformed_are_refused(tmp_path, key, value):
    settings = {"name": "infopro", "lambda1": [1, 1], "lambda2": [0, 1], key: value}
    with pytest.raises(UserError, match="objective"):
        config_of(tmp_path, objective=settings)


def test_raw_input_reaches_a_block_whose_phase_comes_later(tmp_path):
    sections = {"training": {"epochs": 1}, "data": {"size": 64}, "schedule": {"name": "sequential"}}
    summary = run(tmp_path / "run", objective={"name": "infopro"}, **sections)
    assert summary.status == "completed"
    assert all(block["updates"] == 4 for block in summary.blocks)


def test_the_head_of_infopro_is_greedy_learnings():
    around = Around((6, 4, 4), 4, (2, 8, 8), (2, 8, 8))
    torch.manual_seed(7)
    greedy = CrossEntropy(CrossEntropy.Config(), Place(0, 3), around)
    torch.manual_seed(7)
    info = InfoPro(InfoPro.Config(), Place(0, 3), around)
    state = greedy.head.state_dict()
    assert info.head.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in info.head.state_dict().items())
