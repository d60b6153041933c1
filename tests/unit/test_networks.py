import sys
import textwrap

import pytest
import torch

from actors.errors import UserError
from actors.networks.body import Body
from actors.networks.network import NetworkSpec, network_layers, network_options

BUILT_IN = {
    "mlp": (NetworkSpec("mlp", options={"widths": [12, 10], "batch_norm": True}), (1, 4, 4)),
    "cnn": (NetworkSpec("cnn", options={"channels": [4, 6, 8], "pool_after": [1, 2], "dropout": 0.3}), (1, 8, 8)),
    "cnn flatten": (NetworkSpec("cnn", options={"channels": [4, 6], "head": "flatten"}), (3, 7, 7)),
    "vgg11": (NetworkSpec("vgg", options={"width": 0.125, "batch_norm": False, "dropout": 0.2}), (3, 16, 16)),
    "vgg11 bn": (NetworkSpec("vgg", options={"width": 0.125}), (3, 32, 32)),
    "resnet20": (NetworkSpec("resnet", options={"depth": 20, "width": 4}), (3, 8, 8)),
}  # fmt: skip
TORCHVISION = {
    model: (NetworkSpec("torchvision_model", options={"model": model}), (3, 64, 64))
    for model in ("resnet18", "vgg11_bn", "mobilenet_v2")
}
USERS = """
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
            self.norm = nn.BatchNorm2d(channels)

        def forward(self, x):
            return functional.relu(x + self.norm(self.conv(x)))

    class Residual(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.stages = nn.Sequential(Block(6), Block(6))
            self.left, self.right = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
            self.scale = nn.Parameter(torch.full((6, 1, 1), 0.5))
            self.register_buffer("shift", torch.ones(6, 1, 1))
            self.drop = nn.Dropout(0.3)
            self.output = nn.Linear(6, num_classes)

        def forward(self, x):
            x = self.stages(functional.relu(self.stem(x)))
            x = self.left(x) + self.right(x)
            x = x * self.scale + self.shift
            return self.output(self.drop(x.mean((2, 3))))

    class SharedActivation(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(48, 8), nn.Linear(8, 8), nn.Linear(8, 4)
            self.act = nn.Tanh()

        def forward(self, x):
            x = self.act(self.first(torch.flatten(x, 1)))
            return self.third(self.act(self.second(x)))

    def sequence(input_shape, num_classes):
        channels = input_shape[0]
        return nn.Sequential(
            nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.3),
            nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), nn.Linear(24, num_classes),
        )

    def residual(num_classes):
        return Residual(num_classes)

    def named():
        names = [("flat", nn.Flatten()), ("hidden", nn.Linear(48, 8)), ("act", nn.Tanh()), ("output", nn.Linear(8, 4))]
        from collections import OrderedDict
        return nn.Sequential(OrderedDict(names))

    def shared_activation():
        return SharedActivation()

    def repeated_activation():
        act = nn.Tanh()
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 4))

    def nested_repeated_activation():
        class Outer(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = repeated_activation()

            def forward(self, x):
                return self.inner(x)
        return Outer()
"""  # fmt: skip
FACTORIES = ["sequence", "residual", "named", "shared_activation", "repeated_activation", "nested_repeated_activation"]


@pytest.fixture
def users(tmp_path, monkeypatch):
    """A module of the user's on sys.path."""
    (tmp_path / "users_networks.py").write_text(textwrap.dedent(USERS))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("users_networks", None)
    yield __import__("users_networks")
    sys.modules.pop("users_networks", None)


def body_of(spec, shape, seed=7, names=None):
    layers = network_layers(spec, shape, 4, seed)
    return Body([layer for layer in layers if names is None or layer.name in names], seed=seed)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_blocks_in_sequence(spec, shape):
    """One Body of the whole network against one Body per layer, each built on its own; bit for bit."""
    whole = body_of(spec, shape)
    parts = [Body([layer], seed=7) for layer in network_layers(spec, shape, 4, 7)]
    assert len(parts) == len(whole.names) > 1
    x = torch.randn(3, *shape)
    for training in (True, False):  # training first, so that evaluation uses statistics of its own
        whole.train(training)
        h = x.clone()
        for part in parts:
            h = part.train(training)(h, 4 if training else None)
        assert torch.equal(h, whole(x.clone(), 4 if training else None))
        assert h.shape == (3, 4)
    state = {name: tensor for part in parts for name, tensor in part.named_state().items()}
    assert equal(state, whole.named_state()), "weights and statistics are the same too"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_network_computes_the_same_in_any_cut(name):
    check_blocks_in_sequence(*BUILT_IN[name])


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_torchvision_model_computes_the_same_in_any_cut(name):
    check_blocks_in_sequence(*TORCHVISION[name])


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_module_of_the_users_computes_the_same_in_any_cut(users, factory):
    check_blocks_in_sequence(NetworkSpec(factory=f"users_networks:{factory}"), (3, 4, 4))


@pytest.mark.parametrize("name", BUILT_IN)
def test_initial_weights_depend_on_neither_cut_nor_build_order(name):
    spec, shape = BUILT_IN[name]
    whole = body_of(spec, shape).named_state()
    names = [layer.name for layer in network_layers(spec, shape, 4, 7)]
    for cut in range(1, len(names)):
        torch.manual_seed(cut)
        last = body_of(spec, shape, names=names[cut:]).named_state()  # the later block first
        torch.rand(5)
        first = body_of(spec, shape, names=names[:cut]).named_state()
        assert equal(first | last, whole)
    reverse = [Body([layer], seed=7) for layer in reversed(network_layers(spec, shape, 4, 7))]
    assert equal({name: t for body in reversed(reverse) for name, t in body.named_state().items()}, whole)


@pytest.mark.parametrize("factory", ["sequence", "residual"])
def test_initial_weights_of_a_module_of_the_users_do_not_depend_on_the_cut(users, factory):
    spec, shape = NetworkSpec(factory=f"users_networks:{factory}"), (3, 4, 4)
    whole = body_of(spec, shape).named_state()
    for layer in network_layers(spec, shape, 4, 7):
        part = body_of(spec, shape, names=[layer.name]).named_state()
        assert equal(part, {name: whole[name] for name in part})


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20"])
def test_initial_weights_depend_on_the_seed(name):
    spec, shape = BUILT_IN[name]
    a, b = body_of(spec, shape, seed=1).named_state(), body_of(spec, shape, seed=2).named_state()
    assert not any(torch.equal(a[key], b[key]) for key in a if key.endswith("weight") and a[key].dim() > 1)


def test_layers_of_the_same_shape_start_with_different_weights():
    state = body_of(NetworkSpec("mlp", options={"widths": [8, 8, 8]}), (1, 2, 4)).named_state()
    assert not torch.equal(state["hidden2.0.weight"], state["hidden3.0.weight"])


def test_building_a_network_leaves_the_global_generator_alone(users):
    specs = [BUILT_IN["cnn"], (NetworkSpec(factory="users_networks:residual"), (3, 4, 4))]
    before = torch.get_rng_state()
    for spec, shape in specs:
        body_of(spec, shape)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_state_of_a_factory_is_that_of_the_plain_module(users, factory):
    body = body_of(NetworkSpec(factory=f"users_networks:{factory}"), (3, 4, 4))
    make = getattr(users, factory)
    offered = {"sequence": {"input_shape": (3, 4, 4), "num_classes": 4}, "residual": {"num_classes": 4}}
    plain = make(**offered.get(factory, {}))
    body(torch.randn(3, 3, 4, 4), 0)  # so that statistics and the number of batches are no longer the first
    assert body.named_state().keys() == plain.state_dict().keys()
    plain.load_state_dict(body.named_state(), strict=True)
    x = torch.randn(3, 3, 4, 4)
    assert torch.equal(plain.eval()(x.clone()), body.eval()(x.clone()))


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_state_of_a_torchvision_model_is_that_of_the_plain_model(name):
    import torchvision

    spec, shape = TORCHVISION[name]
    body = body_of(spec, shape)
    plain = torchvision.models.get_model(name, weights=None, num_classes=4)
    assert set(body.named_state()) == set(plain.state_dict())
    plain.load_state_dict(body.named_state(), strict=True)
    x = torch.randn(2, *shape)
    assert torch.equal(plain.eval()(x.clone()), body.eval()(x.clone()))


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_state_of_a_layer_begins_with_its_name(name):
    body = body_of(*BUILT_IN[name])
    held = {key: [layer for layer in body.names if key.startswith(f"{layer}.")] for key in body.named_state()}
    assert all(len(layers) == 1 for layers in held.values())


def test_a_state_goes_from_one_body_into_another():
    spec, shape = BUILT_IN["resnet20"]
    source, target = body_of(spec, shape, seed=1), body_of(spec, shape, seed=2)
    source(torch.randn(4, *shape), 0)
    target.load_named_state(source.named_state() | {"another.block": torch.zeros(1)})
    assert equal(source.named_state(), target.named_state())
    with pytest.raises(KeyError, match="is missing"):
        target.load_named_state({})
    name, tensor = next(iter(source.named_state().items()))
    with pytest.raises(KeyError, match="has shape"):
        target.load_named_state(source.named_state() | {name: tensor[:1]})


def test_every_network_of_the_folder_has_options_with_defaults():
    options = network_options()
    assert {"mlp", "cnn", "vgg", "resnet", "torchvision_model"} <= set(options)
    for model in options.values():
        model()


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("resnt", "resnet"), ("vggg", "vgg"), ("torchvision", "torchvision_model")]
)
def test_an_unknown_network_is_refused_with_the_nearest_name(wrong, nearest):
    with pytest.raises(UserError, match=rf"network\.name: got {wrong!r}, expected .*did you mean {nearest!r}\?"):
        network_layers(NetworkSpec(wrong), (1, 8, 8), 4, 0)


@pytest.mark.parametrize("wrong", [None, "qqqq"])
def test_a_network_that_resembles_nothing_is_refused_without_a_hint(wrong):
    with pytest.raises(UserError, match=r"network\.name: got .*network\.factory") as refusal:
        network_layers(NetworkSpec(wrong), (1, 8, 8), 4, 0)
    assert "did you mean" not in str(refusal.value)


@pytest.mark.parametrize("wrong", ["resnet19", "", "fasterrcnn_resnet50_fpn"])
def test_an_unknown_torchvision_model_is_refused(wrong):
    spec = NetworkSpec("torchvision_model", options={"model": wrong})
    with pytest.raises(UserError, match=rf"network\.model: got {wrong!r}, expected a model of torchvision"):
        network_layers(spec, (3, 64, 64), 4, 0)
