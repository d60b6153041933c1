"""T14 and one feedback layer by itself: its two passes, its matrix, its random draws."""

import math

import pytest
import torch
from torch import nn

from actors.errors import UserError
from actors.learning_rule import Batch
from actors.module_pass import Late, ModulePass
from actors.networks.body import Body
from actors.networks.layer import seeded_layer
from actors.nn.feedback_layers import drawn, feedback_layers, use_feedback
from actors.precision import Precision
from actors.rules.feedback_alignment import FixedMatrix
from actors.rules.sign_symmetry import EqualSizes, FixedSizes
from tests.methods.feedback_bodies import body_of, cosine, fixed, fresh, learned

LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), (5,)),
    "linear on sequences": (lambda: nn.Linear(5, 4), (3, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 8)),
    "conv2d with stride and padding": (lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2)), (4, 7, 8)),
    "conv2d without bias": (lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False), (4, 8, 8)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (4, 7, 8)),
    "conv2d of the same size": (lambda: nn.Conv2d(4, 6, (4, 3), padding="same"), (4, 7, 8)),
    "conv2d over the valid part": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (4, 7, 8)),
    "conv2d with reflection": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 7, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 4, 5, 6)),
}


def gradients(body, shape, *, batch=3, precision="fp32", layout=None, between=lambda: None):
    """Return output, gradient at the input, and gradients of the plain layer's own parameters."""
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
    if layout is not None:
        x, body = x.contiguous(memory_format=layout), body.to(memory_format=layout)
    x.requires_grad_()
    with Precision(precision, "cpu").autocast():
        y = body(x)
    between()
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype))
    own = {name: p.grad for name, p in body.named_parameters() if "feedback" not in name}
    return y.detach(), x.grad, own


def assert_equal(found, expected):
    (y, x, own), (y_, x_, own_) = found, expected
    assert torch.equal(y, y_) and torch.equal(x, x_) and own.keys() == own_.keys()
    assert all(torch.equal(own[name], own_[name]) for name in own)


# ---------------------------------------------------------------- one layer


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_with_its_own_weight_as_feedback_matrix_equals_the_plain_layer_bit_for_bit(kind, precision):
    make, shape = LAYERS[kind]
    transported = body_of(make, lambda weight, std, generator: FixedMatrix(weight.detach().clone()))
    assert_equal(
        gradients(transported, shape, precision=precision), gradients(body_of(make), shape, precision=precision)
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("kind", LAYERS)
def test_credit_goes_through_the_feedback_matrix_and_all_else_is_the_plain_layers(kind):
    make, shape = LAYERS[kind]
    aligned, plain, other = body_of(make, fixed), body_of(make), body_of(make)
    ((_, layer),) = feedback_layers(aligned)
    next(other.parameters()).data.copy_(layer.feedback.matrix)
    found = gradients(aligned, shape)
    y, x, own = gradients(plain, shape)
    assert_equal(found, (y, gradients(other, shape)[1], own))
    assert not torch.allclose(found[1], x, atol=0.1 * float(x.abs().max()))


def test_a_channels_last_layer_with_its_own_weight_equals_the_plain_layer_bit_for_bit():
    make, shape = LAYERS["conv2d with stride and padding"]
    body = body_of(make, lambda weight, std, generator: FixedMatrix(weight.detach().clone()))
    found = gradients(body, shape, layout=torch.channels_last)
    ((_, layer),) = feedback_layers(body)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.feedback.matrix.is_contiguous(memory_format=torch.channels_last)
    assert_equal(found, gradients(body_of(make), shape, layout=torch.channels_last))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("matrix", [fixed, learned, fresh])
def test_a_compiled_layer_gives_what_the_layer_gives(matrix):
    """Whatever the generator does between the two passes: all draws are the forward pass's."""

    def make():
        return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 4))

    plain, compiled = body_of(make, matrix), body_of(make, matrix)
    for layer in compiled.layers:
        layer.compile(backend="aot_eager", fullgraph=matrix is not fresh)
    found = []
    for seed, body in enumerate((plain, compiled)):
        torch.manual_seed(7)
        of_forward = gradients(body, (2, 4, 4), between=lambda seed=seed: torch.manual_seed(seed))
        found.append((*of_forward, [p.grad for p in body.parameters()]))
    assert_equal(found[1][:3], found[0][:3])
    assert all(torch.equal(a, b) for a, b in zip(found[1][3], found[0][3], strict=True))


def test_feedback_matrices_are_as_large_as_the_initial_weights_unless_told_otherwise():
    def make():
        return nn.Sequential(nn.Linear(200, 300), nn.Linear(300, 100))

    for scale in (None, 0.5):
        for _, layer in feedback_layers(body_of(make, fixed, scale=scale)):
            expected = float(layer.weight.detach().std()) if scale is None else scale
            assert float(layer.feedback.matrix.std()) == pytest.approx(expected, rel=0.02)


def test_feedback_matrices_differ_by_layer_path_and_seed_and_are_not_the_weights():
    def make():
        return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))

    bodies = [Body([seeded_layer(name, make, 0)], seed=seed) for name, seed in (("a", 0), ("b", 0), ("a", 1))]
    for body in bodies:
        use_feedback(body, fixed, 1.0)
    matrices = [layer.feedback.matrix for body in bodies for _, layer in feedback_layers(body)]
    vectors = nn.functional.normalize(torch.stack(matrices).flatten(1).detach())
    assert float((vectors @ vectors.T - torch.eye(6)).abs().max()) < 0.6, "36 numbers each: 0.17 is usual"
    weight = torch.empty(40, 40)
    torch.manual_seed(4)
    nn.init.normal_(weight)
    generator = torch.Generator().manual_seed(5)
    assert abs(cosine(drawn(weight, 1.0, generator), weight)) < 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.ConvTranspose2d(2, 2, 3),
        lambda: nn.GRU(4, 4),
        lambda: type("Mine", (nn.Linear,), {})(4, 4),
    ],
)
def test_a_layer_that_would_transport_its_weights_all_the_same_is_refused(make):
    with pytest.raises(UserError, match=r"network: layer 'layer' holds a \w+, expected nn\.Linear or .*choose another"):
        body_of(make, fixed)


def test_weights_that_give_no_scale_are_refused():
    def make():
        linear = nn.Linear(3, 3)
        nn.init.zeros_(linear.weight)
        return nn.Sequential(linear)

    with pytest.raises(UserError, match=r"rule\.scale: .*layer 'layer\.0' are all alike.*set rule\.scale"):
        body_of(make, fixed)
    body_of(make, fixed, scale=0.1)


# ---------------------------------------------------------------- T14: signs


def gaussian():
    layers = [nn.Linear(400, 300), nn.Conv2d(60, 50, 3)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.05)
    return nn.ModuleList(layers)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda weight, std, generator: EqualSizes(std), math.sqrt(2 / math.pi)),
        (lambda weight, std, generator: FixedSizes(drawn(weight, std, generator).abs()), 2 / math.pi),
        (fresh, 2 / math.pi),
    ],
    ids=["usf", "frsf", "brsf"],
)
def test_sign_symmetric_matrices_are_as_close_to_gaussian_weights_as_theory_says(make, expected):
    for _, layer in feedback_layers(body_of(gaussian, make)):
        matrix = layer.feedback(layer.weight)
        assert cosine(matrix, layer.weight) == pytest.approx(expected, abs=0.01)
        assert float(matrix.square().mean().sqrt()) == pytest.approx(0.05, rel=0.02), "the weights' own scale"


@pytest.mark.parametrize("late", [Late.RECOMPUTE, Late.STASH])
def test_fresh_draws_differ_by_batch_and_are_repeated_by_a_second_forward_pass(late):
    def make():
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))

    body = body_of(make, fresh)
    x, credit = torch.randn(5, 6), torch.randn(5, 4)

    def at_input(batch_id, late, stashed=None):
        settings = {"late": late, "input_gradient": True, "precision": Precision("fp32", "cpu")}
        p = ModulePass(body, x, Batch(batch_id, batch_id), **settings)
        if late is not Late.KEPT:
            torch.manual_seed(11)
            again = {"stashed": p.stashed, "h": p.h, "kept": {}, "answered": set(), "is_complete": False}
            p = ModulePass.reopened(body, x, p.batch, **settings, **again)
        return p.vjp(credit, weights=False, input=True)

    assert torch.equal(at_input(3, late), at_input(3, Late.KEPT))
    for module in body.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert not torch.allclose(at_input(3, Late.KEPT), at_input(4, Late.KEPT))


def test_fresh_matrices_of_two_batches_share_the_signs_and_nothing_else():
    body, drawn_by = body_of(lambda: nn.Linear(80, 80), fresh), {}
    ((_, layer),) = feedback_layers(body)
    layer.feedback.register_forward_hook(lambda module, args, out: drawn_by.setdefault(batch_id, []).append(out))
    for batch_id in (0, 1, 0):
        body(torch.randn(2, 80), batch_id)
    first, second = drawn_by[0][0], drawn_by[1][0]
    assert torch.equal(first, drawn_by[0][1])
    assert cosine(first.abs() - first.abs().mean(), second.abs() - second.abs().mean()) == pytest.approx(0, abs=0.05)


def test_an_evaluation_draws_no_matrices():
    body = body_of(lambda: nn.Linear(4, 4), fresh)
    before = torch.get_rng_state()
    with torch.no_grad():
        body(torch.ones(2, 4))
    assert torch.equal(torch.get_rng_state(), before)
