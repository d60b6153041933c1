import pytest
import torch
from pydantic import ValidationError
from torch import nn

from actors.learning_rule import Around, Batch
from actors.needs import Place
from actors.nn.auxiliary_head import HeadConfig, auxiliary_head
from actors.objectives.cross_entropy import CrossEntropy

KINDS = ["auto", "linear", "cnn", "mlp_sr", "mlp"]
IMAGES = [(8, 1, 1), (8, 2, 2), (8, 7, 7), (8, 16, 16), (8, 1, 7), (8, 5, 3)]
VECTORS = [(1,), (24,), (600,)]
HIDDEN = (nn.Conv2d, nn.Linear)


def layers_of(head, kinds):
    return [module for module in head.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize("shape", [(8, 1, 1), (8, 7, 7), (8, 16, 16)], ids=str)
@pytest.mark.parametrize(
    ("kind", "layer", "kernel"), [("cnn", nn.Conv2d, (3, 3)), ("mlp_sr", nn.Conv2d, (1, 1)), ("mlp", nn.Linear, None)]
)  # fmt: skip
def test_depth_is_the_number_of_hidden_layers(kind, layer, kernel, shape, depth):
    head = auxiliary_head(HeadConfig(kind=kind, depth=depth), shape, 10)
    weighted = layers_of(head, HIDDEN)
    hidden, classifier = weighted[:-1], weighted[-1]
    assert len(hidden) == depth
    assert all(type(module) is layer for module in hidden)
    assert all(module.kernel_size == kernel for module in hidden if kernel)
    assert type(classifier) is nn.Linear and classifier.out_features == 10
    assert len(layers_of(head, nn.ReLU)) == depth, "every hidden layer has one activation"


@pytest.mark.parametrize("kind", ["auto", "cnn", "mlp_sr", "mlp"])
@pytest.mark.parametrize("depth", range(4))
def test_on_vectors_depth_is_the_number_of_hidden_linear_layers(kind, depth):
    head = auxiliary_head(HeadConfig(kind=kind, depth=depth), (24,), 10)
    assert len(layers_of(head, nn.Linear)) == depth + 1
    assert not layers_of(head, nn.Conv2d)


@pytest.mark.parametrize("shape", [(8, 7, 7), (24,)], ids=str)
def test_a_linear_head_has_no_hidden_layer_at_any_depth(shape):
    head = auxiliary_head(HeadConfig(kind="linear", depth=5), shape, 10)
    assert [type(module) for module in layers_of(head, HIDDEN)] == [nn.Linear]


def test_auto_is_a_cnn_on_images():
    def described(kind):
        return str(auxiliary_head(HeadConfig(kind=kind, depth=2), (8, 7, 7), 10))

    assert described("auto") == described("cnn")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [*IMAGES, *VECTORS, (3, 6)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_one_score_per_class(kind, shape, training):
    for depth in (0, 1, 2):
        head = auxiliary_head(HeadConfig(kind=kind, depth=depth), shape, 10).train(training)
        scores = head(torch.randn(2, *shape))
        assert scores.shape == (2, 10)
        assert torch.isfinite(scores).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(8, 1, 1), (8, 7, 7), (24,)], ids=str)
def test_a_head_does_not_write_to_the_output_of_its_block(kind, shape):
    h = torch.randn(2, *shape)
    before = h.clone()
    auxiliary_head(HeadConfig(kind=kind, depth=2), shape, 10)(h)
    assert torch.equal(h, before)


@pytest.mark.parametrize("kind", ["cnn", "mlp_sr", "mlp"])
def test_width_is_the_width_of_every_hidden_layer(kind):
    head = auxiliary_head(HeadConfig(kind=kind, depth=3, width=5), (8, 7, 7), 10)
    assert [module.weight.shape[0] for module in layers_of(head, HIDDEN)] == [5, 5, 5, 10]


@pytest.mark.parametrize("kind", ["cnn", "mlp_sr"])
def test_without_a_width_the_hidden_layers_keep_the_channels(kind):
    head = auxiliary_head(HeadConfig(kind=kind, depth=2), (6, 7, 7), 10)
    assert [module.weight.shape[0] for module in layers_of(head, HIDDEN)] == [6, 6, 10]


@pytest.mark.parametrize("kind", ["cnn", "mlp_sr", "mlp"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_batch_norm_follows_every_hidden_layer_or_none(kind, batch_norm):
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    for depth in (0, 2):
        head = auxiliary_head(HeadConfig(kind=kind, depth=depth, batch_norm=batch_norm), (8, 7, 7), 10)
        assert len(layers_of(head, norms)) == (depth if batch_norm else 0)


@pytest.mark.parametrize("wrong", [{"depth": -1}, {"depth": 9}, {"width": 0}, {"kind": "conv"}, {"depht": 1}])
def test_settings_that_make_no_head_are_refused(wrong):
    with pytest.raises(ValidationError):
        HeadConfig(**wrong)


def test_the_last_block_has_no_head():
    last = CrossEntropy(CrossEntropy.Config(), Place(2, 3), Around((10,), 10))
    scores = torch.randn(4, 10)
    labels = torch.tensor([0, 3, 9, 1])
    assert not list(last.parameters())
    loss = last(scores, Batch(0, 0, {"labels": labels}))
    assert torch.equal(loss, nn.functional.cross_entropy(scores, labels))


@pytest.mark.parametrize("index", [0, 1])
def test_every_other_block_has_the_head_of_its_settings(index):
    config = CrossEntropy.Config(head=HeadConfig(kind="mlp_sr", depth=3))
    objective = CrossEntropy(config, Place(index, 3), Around((8, 7, 7), 10))
    assert len(layers_of(objective, nn.Conv2d)) == 3
