import copy
import hashlib
import warnings

import pytest
import torch
from torch import nn

from actors.networks.body import Body
from actors.networks.layer import Layer
from actors.networks.network import NetworkSpec, network_layers
from actors.networks.private_input import keep_input_intact

SHAPE = (3, 32, 32)
VGG = {bn: NetworkSpec("vgg", options={"width": 0.0625, "batch_norm": bn, "dropout": 0.2}) for bn in (True, False)}


def layers(batch_norm):
    return network_layers(VGG[batch_norm], SHAPE, 4, seed=1)


def read_only(x):
    """A tensor over immutable bytes, as a received message is; and a check that they are what they were."""
    data = x.contiguous().numpy().tobytes()
    digest = hashlib.sha256(data).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that nothing stops it from writing
        received = torch.frombuffer(data, dtype=x.dtype).reshape(x.shape)
    return received, lambda: hashlib.sha256(data).digest() == digest


def body_of(*modules):
    made = [Layer(f"layer{i}", lambda m=m: m, f"layer{i}.") for i, m in enumerate(modules)]
    return Body(made, seed=0)


def writes(body, x, training):
    received, intact = read_only(x)
    body.train(training)(received, 0 if training else None)
    return not intact()


class Clamp(nn.Module):
    """A user's layer that writes to its input without an `inplace` switch."""

    def forward(self, x):
        return torch.relu_(x) * 2


class ClampData(nn.Module):
    """The same in a way that torch's count of in-place writes does not see."""

    def forward(self, x):
        x.data.clamp_(min=0)
        return x * 2


class ClampInEvaluation(nn.Module):
    def forward(self, x):
        return x * 2 if self.training else x.relu_()


@pytest.mark.parametrize("batch_norm", [True, False], ids=["bn", "no bn"])
def test_no_block_of_a_vgg_writes_to_its_input_wherever_it_is_cut(batch_norm):
    """Every cut into two, and the cut after every layer; in both modes; outputs equal those uncut."""
    whole = Body(layers(batch_norm), seed=1)
    count = len(whole.names)
    cuts = [[cut] for cut in range(1, count)] + [list(range(1, count))]
    x = torch.randn(2, *SHAPE)
    expected = {mode: whole.train(mode)(x.clone(), 6 if mode else None) for mode in (True, False)}
    for starts in cuts:
        own, shape, blocks = layers(batch_norm), SHAPE, []
        for a, b in zip([0, *starts], [*starts, count], strict=True):
            body = Body(own[a:b], seed=1)
            keep_input_intact(body, shape)
            blocks.append(body)
            shape = body.output_shape(shape)
        for training in (True, False):
            h = x
            for body in blocks:
                received, intact = read_only(h)
                h = body.train(training)(received, 6 if training else None).detach()
                assert intact(), f"the block of {body.names} wrote to its input, training={training}"
            assert torch.equal(h, expected[training])
        state = {k: v for body in blocks for k, v in body.named_state().items()}
        assert state.keys() == whole.named_state().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in whole.named_state().items())


@pytest.mark.parametrize("batch_norm", [True, False], ids=["bn", "no bn"])
def test_only_blocks_that_begin_with_a_writer_are_changed(batch_norm):
    shape, changed = SHAPE, []
    for layer in layers(batch_norm):
        body = Body([layer], seed=1)
        if keep_input_intact(body, shape):
            changed.append(layer.name)
            assert not body.clones_input, "a switch is enough"
        shape = body.output_shape(shape)
    assert changed == [f"relu{number}" for number in range(1, 9)]


def test_in_place_layers_further_inside_a_block_keep_their_switch():
    body = body_of(nn.Linear(4, 4), nn.ReLU(inplace=True))
    assert not keep_input_intact(body, (4,))
    assert body.layers[1].inplace
    body = body_of(nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(inplace=True))
    assert keep_input_intact(body, (4,))
    assert [body.layers[0].inplace, body.layers[2].inplace] == [False, True]


def test_a_dropout_before_an_in_place_relu_does_not_hide_it_in_evaluation():
    """In evaluation a dropout returns its very input."""
    body = body_of(nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(4, 4))
    x = torch.randn(8, 4)
    assert writes(copy.deepcopy(body), x, training=False), "the case is real"
    assert keep_input_intact(body, (4,))
    assert not writes(body, x, training=True)
    assert not writes(body, x, training=False)
    assert not body.clones_input


@pytest.mark.parametrize("view", [nn.Flatten(), nn.Identity(), nn.Unflatten(1, (2, 2))])
def test_a_write_through_a_view_of_the_input_is_found(view):
    body = body_of(view, nn.ReLU(inplace=True))
    assert keep_input_intact(body, (4,))
    assert not any(writes(body, torch.randn(8, 4), training) for training in (True, False))


def test_two_writers_in_a_row_are_both_switched():
    body = body_of(nn.ReLU(inplace=True), nn.LeakyReLU(inplace=True))
    x = torch.randn(8, 4)
    expected = nn.Sequential(nn.ReLU(), nn.LeakyReLU())(x)
    keep_input_intact(body, (4,))
    assert not any(writes(body, x, training) for training in (True, False))
    assert torch.equal(body(x), expected)


@pytest.mark.parametrize("kind", [Clamp, ClampData, ClampInEvaluation], ids=lambda kind: kind.__name__)
def test_a_layer_without_a_switch_works_on_a_copy(kind):
    body = body_of(kind(), nn.Linear(4, 4))
    x = torch.randn(8, 4)
    expected = {training: body.train(training)(x.clone()) for training in (True, False)}
    assert any(writes(copy.deepcopy(body), x, training) for training in (True, False)), "the case is real"
    assert keep_input_intact(body, (4,))
    assert body.clones_input
    for training in (True, False):
        assert not writes(body, x, training)
        assert torch.equal(body.train(training)(x), expected[training])


def test_a_block_that_copies_its_input_still_gives_the_gradient_at_it():
    body = body_of(Clamp())
    keep_input_intact(body, (4,))
    x = torch.tensor([[-1.0, 2.0, -3.0, 4.0]], requires_grad=True)
    body(x).sum().backward()
    assert x.grad.tolist() == [[0.0, 2.0, 0.0, 2.0]]


@pytest.mark.parametrize("batch_norm", [True, False], ids=["bn", "no bn"])
def test_looking_for_writes_and_shapes_changes_nothing(batch_norm):
    body = Body([*layers(batch_norm), Layer("noise", lambda: nn.Dropout(0.5), "noise.")], seed=1)
    body.train()
    state = copy.deepcopy(body.named_state())
    modes = [module.training for module in body.modules()]
    generator = torch.get_rng_state()
    keep_input_intact(body, SHAPE)
    assert body.output_shape(SHAPE) == (4,)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, state[name]) for name, tensor in body.named_state().items())
    assert all(tensor.grad is None for tensor in body.parameters())
    assert [module.training for module in body.modules()] == modes


def test_a_draw_inside_a_users_layer_does_not_reach_the_global_generator():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    body = body_of(Noise())
    generator = torch.get_rng_state()
    assert not keep_input_intact(body, (4,))
    assert body.output_shape((4,)) == (4,)
    assert torch.equal(torch.get_rng_state(), generator)


def test_finding_writes_costs_the_same_weights_whether_or_not_the_block_is_changed():
    """A block that had to be changed computes what an unchanged one would have, statistics included."""
    changed, plain = body_of(nn.ReLU(inplace=True), nn.BatchNorm1d(4)), body_of(nn.ReLU(), nn.BatchNorm1d(4))
    keep_input_intact(changed, (4,))
    x = torch.randn(8, 4)
    assert torch.equal(changed(x), plain(x))
    assert torch.equal(changed.layers[1].running_mean, plain.layers[1].running_mean)
