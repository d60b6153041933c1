"""Forward-forward: streams, goodness, locality (T09, T25), both evaluations, and what the plain network lacks."""

import pytest
import torch
from torch.nn.functional import softplus

from actors.block import Block
from actors.datasets.batches import EvalBatches
from actors.datasets.loading import load_data
from actors.errors import UserError
from actors.learning_rule import Batch
from actors.messages import Flags, Kind, Message
from actors.nn.goodness import goodness, length_normalised
from actors.storage import open_storage
from orchestrator import api
from orchestrator.catalog import find_catalog
from orchestrator.checkpoints import newest_checkpoint
from orchestrator.cli import main
from orchestrator.config import load_runs
from orchestrator.plan import make_plan
from orchestrator.specs import block_spec, data_spec
from tests.conftest import ROOT
from tests.contract.plugin_chain import Chain, chain_config
from tests.methods.recorded_chain import RecordedChain, equal, gradients_of

MLP = {"name": "mlp", "widths": [24, 24, 24], "blocks": 4}
CLASSES = 4
DIGITS = ROOT / "configs" / "digits_mlp.yaml"
METHOD = ROOT / "configs" / "methods" / "forward_forward.yaml"
SHORT = ["training.epochs=6", "evaluation.every_epochs=0", "placement.backend=in_process"]


def ff_config(**sections):
    return chain_config(**{"rule": {"name": "forward_forward"}, "network": MLP, **sections})


def digits_config(*overrides):
    (config,) = load_runs([DIGITS, METHOD], [*SHORT, *overrides], find_catalog())
    return config


def ups(chain, message):
    """What every block is given for one batch, the last block's output included."""
    given = [message.tensors["h"]]
    for block in chain.blocks:
        sent = block.now(Message(Kind.ACTIVATION, message.batch_id, tensors={**message.tensors, "h": given[-1]}))
        given.append(sent.up)
    return given


def with_labels(message, labels):
    return Message(Kind.ACTIVATION, message.batch_id, tensors={**message.tensors, "labels": labels})


def entered(chain, message):
    batch = Batch(message.batch_id, 0, {"labels": message.tensors["labels"]})
    return chain.blocks[0].rule.enter(message.tensors["h"], batch)


def label_pixels(x, num_classes=CLASSES):
    return x[:, 0].flatten(1)[:, :num_classes]


# ---------------------------------------------------------------- streams


def test_wrong_labels_depend_on_seed_and_batch_and_on_nothing_else():
    def negatives(batch_id, **sections):
        torch.manual_seed(len(drawn))  # the global generator is another every time
        chain = Chain(ff_config(**sections))
        message = chain.message(0, False)
        message = Message(Kind.ACTIVATION, batch_id, tensors={**message.tensors, "labels": torch.zeros(32).long()})
        drawn.append(label_pixels(entered(chain, message)[32:64]).argmax(dim=1))
        assert not (drawn[-1] == 0).any()
        return drawn[-1]

    drawn = []
    first = negatives(7)
    assert torch.equal(negatives(7), first)
    assert torch.equal(negatives(7, network={**MLP, "blocks": 2}), first), "cuts don't matter"
    assert not torch.equal(negatives(8), first)
    assert not torch.equal(negatives(7, seed=6), first)


def test_the_first_block_runs_on_three_streams_that_differ_in_label_pixels_only():
    chain = Chain(ff_config())
    message = chain.message(3, False)
    images, labels = message.tensors["h"], message.tensors["labels"]
    positive, negative, neutral = entered(chain, message).chunk(3)
    assert torch.equal(label_pixels(positive).argmax(dim=1), labels)
    for stream in (positive, negative, neutral):
        assert torch.equal(stream.flatten(1)[:, CLASSES:], images.flatten(1)[:, CLASSES:])
    for stream in (positive, negative):
        assert torch.equal(label_pixels(stream).sort(dim=1).values, torch.tensor([[0.0, 0.0, 0.0, 1.0]]).expand(32, 4))
    assert (label_pixels(neutral) == 1 / CLASSES).all()


def test_the_neutral_stream_carries_no_label_through_any_block():
    chain, other = Chain(ff_config()), Chain(ff_config())
    message = chain.message(0, False)
    shifted = with_labels(message, (message.tensors["labels"] + 1) % CLASSES)
    pairs = list(zip(ups(chain, message)[1:4], ups(other, shifted)[1:4], strict=True))
    assert len(pairs) == 3
    for given, given_other in pairs:
        assert torch.equal(given.chunk(3)[2], given_other.chunk(3)[2])
        assert not torch.equal(given.chunk(3)[0], given_other.chunk(3)[0]), "the positive one does carry it"


def test_what_a_block_hands_on_has_length_one_per_sample():
    """Length as root mean square, so that the next layer's inputs are as large as normalised pixels."""
    chain = Chain(ff_config())
    given = ups(chain, chain.message(0, False))
    for h in given[1:4]:
        assert h.shape == (96, 24)
        assert torch.allclose(h.square().mean(dim=1).sqrt(), torch.ones(96), atol=1e-6)
    assert given[4].shape == (32, CLASSES), "scores of the neutral stream alone"


# ---------------------------------------------------------------- what a block follows


@pytest.mark.parametrize("kind", ["sum", "mean"])
@pytest.mark.parametrize("j", [0, 1, 2])
def test_a_hidden_block_follows_the_gradient_of_its_goodness_loss_by_autograd(j, kind):
    rule = {"name": "forward_forward", "goodness": kind, "threshold": 0.3}
    chain = Chain(ff_config(rule=rule))
    message = chain.message(0, False)
    given = ups(chain, message)
    x = entered(chain, message) if j == 0 else given[j]
    weights = list(chain.blocks[j].body.parameters())
    h = chain.blocks[j].body(x)[:64]
    steepness = 24 if kind == "sum" else 1
    logits = steepness * (h.square().mean(dim=1) - 0.3)
    loss = torch.cat([softplus(-logits[:32]), softplus(logits[32:])]).mean() * 24**0.5 / steepness
    for weight, expected in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        assert expected.abs().max() > 0
        assert torch.allclose(weight.grad, expected, rtol=1e-4, atol=1e-7)


def test_the_neutral_stream_teaches_a_hidden_block_nothing_and_the_readout_everything():
    def gradients(changed):
        chain = Chain(ff_config())
        message = chain.message(0, False)
        given = ups(chain, message)
        chain.blocks[1].body.zero_grad(set_to_none=True)
        chain.blocks[3].body.zero_grad(set_to_none=True)
        for j in (1, 3):
            h = given[j].clone()
            h[changed] += 1.0
            chain.blocks[j].now(Message(Kind.ACTIVATION, 0, tensors={**message.tensors, "h": h}))
        return [gradients_of(chain.blocks[j].body) for j in (1, 3)]

    nothing, neutral, positive = (gradients(rows) for rows in (slice(0, 0), slice(64, 96), slice(0, 32)))
    assert equal(neutral[0], nothing[0]) and not equal(positive[0], nothing[0])
    assert not equal(neutral[1], nothing[1]) and equal(positive[1], nothing[1])


# ---------------------------------------------------------------- locality


def test_a_block_does_not_depend_on_blocks_above_it():
    """T09."""
    rests = Chain(ff_config(optimizer={"name": "sgd", "lr": 0.05, "blocks": {2: {"lr": 0.0}, 3: {"lr": 0.0}}}))
    learns = Chain(ff_config(optimizer={"name": "sgd", "lr": 0.05}))
    with torch.no_grad():
        for chain in (rests,):
            for parameter in chain.blocks[2].body.parameters():
                parameter.add_(0.1)
    for chain in (rests, learns):
        chain.train(0, 8)
    assert [d[0] for d in rests.digests()][:2] == [d[0] for d in learns.digests()][:2]
    assert rests.digests()[2] != learns.digests()[2]


def test_nothing_flows_back():
    """T25."""
    chain = RecordedChain(ff_config())
    used = chain.train(0, 4)
    assert used == {"block0->block1", "block1->block2", "block2->block3"}
    assert not chain.feedback()
    for edge in used:
        rows = {(len(m.tensors["h"]), len(m.tensors["labels"])) for m in chain.sent[edge] if m.tensors}
        assert rows == {(96, 32)}


def test_under_sequential_a_frozen_block_passes_all_streams_on():
    """Else a block whose phase has come would train on the neutral stream as if it were three."""
    chain = RecordedChain(ff_config(schedule={"name": "sequential"}, training={"epochs": 1}))
    start = chain.digests()
    chain.train(0, chain.plan.num_batches)
    for j in range(3):
        sent = [m for m in chain.sent[f"block{j}->block{j + 1}"] if m.kind is Kind.ACTIVATION]
        assert len(sent) == 8 * (3 - j)
        for message in sent:
            h, labels = message.tensors["h"], message.tensors["labels"]
            assert len(h) == 3 * len(labels)
            assert torch.allclose(h.square().mean(dim=1), torch.ones(len(h)), atol=1e-5)
    first = next(m for m in chain.sent["block0->block1"] if m.kind is Kind.ACTIVATION)
    streams = entered(chain, chain.message(first.batch_id, False))
    expected = length_normalised(chain.blocks[0].body(streams))
    assert torch.allclose(first.tensors["h"], expected, atol=1e-6), "the frozen block's answer to the same streams"
    assert all(now != was for now, was in zip(chain.digests(), start, strict=True))


# ---------------------------------------------------------------- what it learns


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forward_forward") / "run"
    config = digits_config("data.validation=0.1", f"run_dir={folder}")
    return folder, api.train(config, progress=False), config


def restored(folder, config):
    plan, checkpoint = make_plan(config), newest_checkpoint(open_storage(str(folder / "checkpoints")))[0]
    blocks = [Block(block_spec(config, plan, j, "run", None), shape) for j, shape in enumerate(plan.shapes)]
    for j, block in enumerate(blocks):
        block.restore(checkpoint.read(j))
        block.train(False)
    return blocks


def test_digits_are_learned_far_better_than_with_frozen_lower_blocks(digits, tmp_path):
    """T17."""
    _, summary, _ = digits
    frozen = digits_config("data.validation=0.1", "rule.name=backprop", "rule.reach=1", f"run_dir={tmp_path / 'run'}")
    shallow = api.train(frozen, progress=False).test_accuracy
    assert summary.status == "completed"
    assert summary.test_accuracy > 0.88 and summary.test_accuracy > shallow + 0.1
    assert summary.ensemble_accuracy > 0.85, "by goodness alone"


def test_goodness_parts_rightly_from_wrongly_labelled_held_out_images_in_every_hidden_block(digits):
    folder, _, config = digits
    blocks = restored(folder, config)
    images, labels = (torch.cat(t) for t in zip(*held_out(config), strict=True))
    with torch.no_grad():
        h = blocks[0].rule.enter(images, Batch(0, 0, {"labels": labels}))
        for block in blocks[:-1]:
            h = block.body(h)
            positive, negative, _ = goodness(h, "sum").chunk(3)
            margin = positive - negative
            assert margin.mean() > 0
            assert (margin > 0).float().mean() > 0.75, "not by a few loud images"
            h = length_normalised(h)


def held_out(config):
    return [(batch.inputs, batch.labels) for batch in EvalBatches(load_data(data_spec(config)).test, 64)]


def test_shuffled_labels_teach_nothing():
    chain = Chain(digits_config("training.epochs=3"))

    def shuffled(batch_id, is_last, message=chain.message):
        found = message(batch_id, is_last)
        order = torch.randperm(len(found.tensors["labels"]), generator=torch.Generator().manual_seed(batch_id))
        shuffled = {**found.tensors, "labels": found.tensors["labels"][order]}
        return Message(found.kind, batch_id, batch_id, found.flags, shuffled)

    chain.message = shuffled
    chain.train(0, chain.plan.num_batches)
    sums = evaluated(chain.blocks, held_out(chain.config))
    assert sums["correct"] / sums["num_samples"] < 0.25
    assert sums["ensemble_correct"] / sums["num_samples"] < 0.25


def evaluated(blocks, batches):
    """The last block's sums over evaluation batches that travel as messages."""
    for index, (images, labels) in enumerate(batches):
        flags = Flags.SPLIT_END if index == len(batches) - 1 else Flags.NONE
        tensors = {"h": images, "labels": labels}
        for block in blocks:
            tensors, result = block.evaluate(Message(Kind.EVALUATION, 0, flags=flags, tensors=tensors, split="test"))
    return result.sums


# ---------------------------------------------------------------- both evaluations


@pytest.mark.parametrize("num_blocks", [2, 4])
def test_the_ensemble_is_the_label_of_highest_goodness_summed_over_hidden_blocks_but_the_first(num_blocks):
    """Here one label, one image at a time; with one hidden block it is that one."""
    chain = Chain(ff_config(network={**MLP, "blocks": num_blocks}))
    chain.train(0, 24)
    batches = [(chain.message(b, False).tensors["h"], chain.message(b, False).tensors["labels"]) for b in (0, 1)]
    voters = chain.blocks[:1] if num_blocks == 2 else chain.blocks[1:-1]
    by_goodness = by_readout = 0
    for block in chain.blocks:
        block.train(False)
    with torch.no_grad():
        for image, label in [(i, y) for images, labels in batches for i, y in zip(images, labels, strict=True)]:
            totals = []
            for c in [None, *range(CLASSES)]:
                h, total = image[None].clone(), 0.0
                h[0, 0].view(-1)[:CLASSES] = torch.full((4,), 0.25) if c is None else torch.eye(CLASSES)[c]
                for block in chain.blocks[:-1]:
                    h = block.body(h)
                    total += float(h.square().sum()) if block in voters else 0.0
                    h = h / h.square().mean().sqrt()
                totals.append(total)
                if c is None:
                    by_readout += int(chain.blocks[-1].body(h).argmax() == label)
            by_goodness += int(max(range(CLASSES), key=totals[1:].__getitem__) == label)
    sums = evaluated(chain.blocks, batches)
    assert (sums["ensemble_correct"], sums["correct"], sums["num_samples"]) == (by_goodness, by_readout, 64)
    assert by_goodness > 24 and by_readout > 24, "four classes"


def test_without_label_votes_an_evaluation_has_the_size_of_the_batch_and_the_same_accuracy():
    chains = [Chain(ff_config(rule={"name": "forward_forward", "label_votes": votes})) for votes in (True, False)]
    sizes, sums = [], []
    for chain in chains:
        chain.train(0, 8)
        tensors = {k: chain.message(0, False).tensors[k] for k in ("h", "labels")}
        up, _ = chain.blocks[0].evaluate(Message(Kind.EVALUATION, 0, tensors=tensors, split="test"))
        sizes.append((len(up["h"]), "votes" in up))
        sums.append(evaluated(chain.blocks, [(tensors["h"], tensors["labels"])])["correct"])
    assert sizes == [(160, True), (32, False)]
    assert sums[0] == sums[1]


def test_evaluate_gives_the_accuracy_of_the_run(digits):
    folder, summary, _ = digits
    result = api.evaluate(folder)
    assert result["test"]["accuracy"] == summary.test_accuracy
    assert result["test"]["loss"] == pytest.approx(summary.test_loss, rel=1e-5)
    assert result["validation"]["accuracy"] == summary.validation_accuracy


def test_the_layers_alone_are_another_network_and_their_export_is_refused(digits, tmp_path, capsys):
    folder, summary, config = digits
    correct = count = 0
    with torch.no_grad():
        for images, labels in held_out(config):
            h = images
            for block in restored(folder, config):
                h = block.body(h)
            correct, count = correct + int((h.argmax(dim=1) == labels).sum()), count + len(labels)
    assert correct / count != summary.test_accuracy
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder), str(tmp_path / "network.safetensors")])
    written = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert written.startswith("unlocked: export: rule 'forward_forward' needs label pixels")
    assert "length normalisation" in written and len(written.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- mistakes


def test_one_block_is_refused():
    with pytest.raises(UserError, match=r"network\.blocks: got 1 with rule 'forward_forward', expected at least 2; "):
        make_plan(ff_config(network={**MLP, "blocks": 1}))


@pytest.mark.parametrize(("shape", "classes"), [([3, 2, 2], 5), ([1, 3, 3], 1)])
def test_images_without_room_for_the_labels_are_refused(shape, classes):
    data = {"name": "generated", "shape": shape, "classes": classes, "size": 64, "batch_size": 8}
    with pytest.raises(
        UserError, match=rf"data: got {classes} classes and samples of shape .* expected 2 to \d classes"
    ):
        Chain(ff_config(data=data))


def test_images_with_just_enough_room_are_taken():
    data = {"name": "generated", "shape": [3, 2, 2], "classes": 4, "size": 64, "batch_size": 8}
    chain = Chain(ff_config(data=data))
    assert (label_pixels(entered(chain, chain.message(0, False))[16:]) == 0.25).all()
