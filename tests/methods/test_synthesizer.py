"""The models behind synthetic gradients and synthetic inputs, by themselves."""

import pytest
import torch

from actors.nn.synthesizer import InputModel, Synthesizer, SynthesizerConfig
from tests.runs import config_of

SHAPES = [(12,), (6, 5, 7)]
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


def synthesizer(shape, num_classes=4, **settings):
    torch.manual_seed(0)
    return Synthesizer(SynthesizerConfig(**settings), shape, num_classes)


def awake(model):
    """As it is once its last layer has left zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("num_classes", [4, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_synthesizer_starts_at_zero_and_can_leave_it_after_one_gradient(shape, num_classes, layers):
    model = synthesizer(shape, num_classes, hidden_layers=layers)
    predicted = model(torch.randn(8, *shape), LABELS)
    assert predicted.shape == (8, *shape)
    assert not predicted.any()
    (predicted - torch.randn(8, *shape)).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_only_a_conditioned_synthesizer_looks_at_the_labels(shape, layers):
    h = torch.randn(8, *shape)
    for num_classes, looks in ((4, True), (None, False)):
        model = awake(synthesizer(shape, num_classes, hidden_layers=layers))
        assert torch.equal(model(h, LABELS), model(h, LABELS.flip(0))) is not looks


@pytest.mark.parametrize("shape", SHAPES)
def test_a_linear_synthesizer_is_affine_and_one_with_a_hidden_layer_is_not(shape):
    a, b = torch.randn(8, *shape), torch.randn(8, *shape)
    for layers, is_affine in ((0, True), (1, False)):
        model = awake(synthesizer(shape, hidden_layers=layers))
        middle = (model(a, LABELS) + model(b, LABELS)) / 2
        assert torch.allclose(model((a + b) / 2, LABELS), middle, atol=1e-5) is is_affine


@pytest.mark.parametrize(("settings", "width", "kernel"), [({}, 6, 5), ({"width": 9, "kernel": 3}, 9, 3)])
def test_images_keep_their_size_through_convolutions_of_the_given_width(settings, width, kernel):
    model = synthesizer((6, 5, 7), hidden_layers=2, **settings)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    sizes = [(c.in_channels, c.out_channels, c.kernel_size, c.stride) for c in convolutions]
    expected = [(6, width), (width, width), (width, 6)]
    assert sizes == [(*pair, (kernel, kernel), (1, 1)) for pair in expected]


def test_hidden_layers_of_vectors_are_as_wide_as_the_vector_and_at_most_1024():
    assert [synthesizer((features,)).first.out_features for features in (12, 1500)] == [12, 1024]


def test_what_a_model_says_does_not_depend_on_how_often_or_in_which_mode_it_was_asked():
    model, h = awake(synthesizer((12,))), torch.randn(8, 12)
    first = model(h, LABELS)
    for _ in range(3):
        model(10 + torch.randn(8, 12), LABELS)
    assert torch.equal(model(h, LABELS), first)
    assert torch.equal(model.eval()(h, LABELS), first)


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize(
    ("raw_shape", "shape"),
    [
        ((1, 28, 28), (16, 14, 14)),
        ((1, 28, 28), (8, 7, 7)),
        ((3, 32, 32), (4, 5, 5)),
        ((1, 28, 20), (4, 3, 20)),
        ((1, 8, 8), (4, 12, 12)),
        ((1, 28, 28), (20,)),
        ((30,), (20,)),
        ((30,), (2, 4, 4)),
    ],
)
def test_an_input_model_fits_every_pair_of_shapes_and_sees_the_whole_input(raw_shape, shape, layers):
    torch.manual_seed(0)
    model = InputModel(SynthesizerConfig(hidden_layers=layers), raw_shape, shape)
    raw = torch.randn(4, *raw_shape, requires_grad=True)
    predicted = model(raw)
    assert predicted.shape == (4, *shape)
    predicted.square().sum().backward()
    seen = raw.grad.abs().sum(dim=(0, 1)) if len(raw_shape) == 3 else raw.grad.abs().sum(dim=0)
    assert (seen > 0).all(), "every pixel reaches the prediction"


def test_an_even_kernel_is_refused_in_one_sentence(tmp_path):
    rule = {"name": "synthetic_gradients", "synthesizer": {"kernel": 4}}
    with pytest.raises(Exception, match=r"^rule\.synthesizer\.kernel: got 4, expected an odd number; correct"):
        config_of(tmp_path, rule=rule)
