import copy
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from actors.networks.body import Body
from actors.networks.layer import Layer
from actors.networks.network import NetworkSpec, network_layers
from actors.networks.private_input import keep_input_intact

SEED = 7
BUILT_IN = {
    "mlp": (NetworkSpec("mlp", options={"widths": [9, 8], "batch_norm": True}), (1, 4, 4)),
    "cnn": (NetworkSpec("cnn", options={"channels": [4, 6, 8], "dropout": 0.3}), (1, 8, 8)),
    "cnn flatten": (NetworkSpec("cnn", options={"channels": [4, 6], "head": "flatten"}), (3, 7, 7)),
    "vgg11": (NetworkSpec("vgg", options={"width": 0.1, "batch_norm": False, "dropout": 0.2}), (1, 8, 8)),
    "vgg16 bn": (NetworkSpec("vgg", options={"depth": 16, "width": 0.1}), (1, 28, 28)),
    "resnet20": (NetworkSpec("resnet", options={"width": 4}), (3, 8, 8)),
    **{
        name: (NetworkSpec("torchvision_model", options={"model": name}), (3, 32, 32))
        for name in ("resnet18", "vgg11_bn", "mobilenet_v2")
    },
}
USERS = """
    import torch
    from torch import nn
    from torch.nn import functional

    class Net(nn.Module):
        def __init__(self, **children):
            super().__init__()
            for name, child in children.items():
                setattr(self, name, child)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def net(forward, **children):
        def factory():
            return type("Net", (Net,), {"forward": forward})(**children)
        return factory

    def tail(self, x):
        y = self.b(self.a(x))
        torch.relu_(y)
        return y

    def pieces(self, x):
        left, right = self.a(x).chunk(2, 1)
        return self.b(torch.cat([right, left], 1))

    def joined(self, x):
        return self.b(torch.cat(self.a(x).chunk(2, 1)[::-1], 1))

    def branch(self, x):
        return self.b(self.a(x)) if x.sum() > 0 else x

    def modes(self, x):
        return self.b(self.a(x)) if self.training else x

    functional_dropout = net(lambda s, x: s.b(functional.dropout(s.a(x), 0.5, training=s.training)))
    residual = net(lambda s, x: s.b(s.a(x) + x))
    called_twice = net(lambda s, x: s.b(s.a(torch.tanh(s.a(x)))))
    activation_twice = net(lambda s, x: s.act(s.b(s.act(s.a(x)))), act=nn.Tanh())
    weight_twice = net(lambda s, x: functional.linear(s.b(s.a(x)), s.a.weight))
    name_clash = net(lambda s, x: s.relu(s.b(torch.relu(s.a(x)))), relu=nn.ReLU())
    write_last, chunks, cat = net(tail), net(pieces), net(joined)
    write_first = net(lambda s, x: s.b(s.a(torch.relu_(x))))
    branching, by_mode = net(branch), net(modes)
    two_results = net(lambda s, x: (s.a(x), s.b(x)))
    no_layers = net(lambda s, x: x)
    unused = net(lambda s, x: s.a(x))

    def buffers():
        def forward(self, x):
            return self.b(self.a(x) * self.scale + self.shift) + self.hidden
        made = net(forward)()
        made.scale = nn.Parameter(torch.full((4,), 0.5))
        made.register_buffer("shift", torch.ones(4))
        made.register_buffer("hidden", torch.ones(4), persistent=False)
        return made

    def sequence(input_shape, num_classes):
        linear = nn.Linear(*input_shape, num_classes)
        return nn.Sequential(nn.Flatten(), linear, nn.ReLU(inplace=True), nn.Dropout())

    def repeated():
        act = nn.Tanh()
        return nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act)

    def any_arguments(**given):
        return nn.Sequential(nn.Linear(*given["input_shape"], given["num_classes"]))

    def tied():
        layer = nn.Linear(4, 4)
        return nn.Sequential(layer, nn.ReLU(), layer)

    def empty():
        return nn.Sequential()

    def wrong_type():
        return 3

    def asks(width):
        return nn.Linear(4, width)

    not_callable = 3
"""
TRACED = [
    "functional_dropout", "residual", "called_twice", "activation_twice", "weight_twice", "name_clash",
    "write_last", "chunks", "cat", "write_first", "buffers", "repeated",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def users(tmp_path, monkeypatch):
    """A module of the user's on sys.path, and two that do not import."""
    (tmp_path / "users_nets.py").write_text(textwrap.dedent(USERS))
    (tmp_path / "users_syntax.py").write_text("def f(:\n")
    (tmp_path / "users_raises.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("users_nets")
    sys.modules.pop("users_nets", None)


def layers_of(spec, shape, seed=SEED):
    return network_layers(spec, shape, 4, seed)


def user_layers(name, shape=(4,), seed=SEED):
    return layers_of(NetworkSpec(factory=f"users_nets:{name}"), shape, seed)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_any_cut(layers, shape):
    """One Body of all layers against one per layer, each from a build of its own, bit for bit."""
    whole, parts = Body(layers, seed=SEED), [Body([layer], seed=SEED) for layer in layers]
    start = {name: tensor.clone() for name, tensor in whole.named_state().items()}
    assert equal(start, {k: v for part in parts for k, v in part.named_state().items()})
    for training in (True, False):
        x, draw = torch.randn(3, *shape), 5 if training else None
        h = x.clone()
        for part in parts:
            h = part.train(training)(h, draw)
            torch.rand(3)
        assert torch.equal(h, whole.train(training)(x.clone(), draw))
    assert equal(whole.named_state(), {k: v for part in parts for k, v in part.named_state().items()})


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_network_computes_the_same_in_any_cut(name):
    spec, shape = BUILT_IN[name]
    check_any_cut(layers_of(spec, shape), shape)


@pytest.mark.parametrize("name", TRACED)
def test_a_users_module_computes_the_same_in_any_cut(users, name):
    check_any_cut(user_layers(name), (4,))


@pytest.mark.parametrize("name", TRACED)
def test_a_users_module_is_itself_in_layers(users, name):
    body = Body(user_layers(name), seed=SEED)
    plain = getattr(users, name)()
    assert body.named_state().keys() == plain.state_dict().keys()
    plain.load_state_dict(body.named_state(), strict=True)
    x = torch.randn(5, 4)
    for training in (True, False):
        torch.manual_seed(1)
        expected = plain.train(training)(x.clone())
        torch.manual_seed(1)
        assert torch.equal(body.train(training)(x.clone()), expected)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2"])
def test_a_torchvision_model_keeps_its_names(name):
    import torchvision

    body = Body(layers_of(*BUILT_IN[name]), seed=SEED).eval()
    plain = torchvision.models.get_model(name, num_classes=4).eval()
    plain.load_state_dict(body.named_state(), strict=True)
    x = torch.randn(2, *BUILT_IN[name][1])
    assert len(body.names) > 5
    assert torch.equal(body(x.clone()), plain(x.clone()))


def test_weights_that_are_used_twice_stay_in_one_layer(users):
    assert [layer.name for layer in user_layers("called_twice")] == ["a_1", "b"]
    assert [layer.name for layer in user_layers("activation_twice")] == ["a", "act", "b", "act_1"]


def test_tracing_leaves_the_users_module_in_its_mode(users):
    from actors.networks.fx_layers import fx_segments

    for training in (True, False):
        module = users.functional_dropout().train(training)
        fx_segments(module, "network.factory")
        assert module.training is training


@pytest.mark.parametrize("name", ["cnn", "resnet20", "resnet18"])
def test_every_build_of_a_layer_is_a_module_of_its_own(name):
    layers = layers_of(*BUILT_IN[name])
    a, b = Body(layers, seed=SEED), Body(layers, seed=SEED)
    assert not {id(m) for m in a.modules()} & {id(m) for m in b.modules()}
    assert equal(a.named_state(), b.named_state())


@pytest.mark.parametrize("name", ["mlp", "vgg11", "resnet20", "resnet18"])
def test_initial_weights_depend_on_the_seed_and_nothing_else(name):
    first = {}
    for layer in reversed(layers_of(*BUILT_IN[name])):
        first |= Body([layer], seed=0).named_state()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = Body(layers_of(*BUILT_IN[name]), seed=SEED).named_state()
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(dict(sorted(first.items())), dict(sorted(again.items())))
    other = Body(layers_of(*BUILT_IN[name], seed=8), seed=8).named_state()
    assert not any(torch.equal(other[k], again[k]) for k in again if again[k].dim() > 1)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_no_cut_of_vgg11_writes_to_what_it_receives(batch_norm):
    spec, shape = NetworkSpec("vgg", options={"width": 0.05, "batch_norm": batch_norm}), (1, 8, 8)
    layers, changed = layers_of(spec, shape), 0
    for start in range(len(layers)):
        body = Body(layers[start : start + 4], seed=SEED)
        state, rng = copy.deepcopy(body.named_state()), torch.get_rng_state()
        changed += keep_input_intact(body, shape)
        assert equal(body.named_state(), state) and torch.equal(torch.get_rng_state(), rng)
        assert not body.clones_input
        for training in (True, False):
            received = np.random.default_rng(start).standard_normal((2, *shape)).astype(np.float32)
            x = torch.from_numpy(received)
            before, version = received.tobytes(), x._version
            body.train(training)(x, 0)
            assert received.tobytes() == before and x._version == version
        shape = Body(layers[start : start + 1], seed=SEED).output_shape(shape)
    assert changed == 8, "one block for each leading ReLU"


def test_only_the_leading_layer_loses_its_in_place_write():
    def build():
        return nn.Sequential(nn.Dropout(0.5), nn.ReLU(True), nn.Linear(4, 4), nn.ReLU(True))

    body = Body([Layer("x", build, "x.")], seed=0)
    assert keep_input_intact(body, (4,))
    assert [m.inplace for m in body.modules() if isinstance(m, nn.ReLU)] == [False, True]
    assert not keep_input_intact(body, (4,))


def test_a_write_that_has_no_switch_is_met_with_a_copy(users):
    layers = [*user_layers("write_first"), Layer("end", lambda: nn.ReLU(inplace=True), "end.")]
    body = Body(layers, seed=SEED)
    assert keep_input_intact(body, (4,)) and body.clones_input
    assert body.layers[-1].inplace is True, "switches that did not help are put back"
    x = torch.randn(3, 4)
    expected = x.clone()
    body(x)
    assert torch.equal(x, expected)


def test_draws_depend_on_the_layer_and_the_draw_only():
    def drops(*names):
        return Body([Layer(name, lambda: nn.Dropout(0.5), f"{name}.") for name in names], seed=3)

    x = torch.ones(2, 64)
    expected = drops("a", "b", "c")(x, 4)
    h = drops("a")(x, 4)
    drops("z")(x, 9)
    assert torch.equal(drops("b", "c")(h, 4), expected)
    assert not torch.equal(drops("a")(x, 4), drops("a")(x, 5))
    assert not torch.equal(drops("a")(x, 4), drops("b")(x, 4))


def test_layers_without_draws_are_not_seeded():
    body = Body(layers_of(*BUILT_IN["vgg16 bn"]), seed=SEED)
    before = torch.get_rng_state()
    body(torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_output_shape_changes_nothing():
    body = Body(layers_of(*BUILT_IN["cnn"]), seed=SEED)
    state, rng = copy.deepcopy(body.named_state()), torch.get_rng_state()
    assert body.output_shape((1, 8, 8)) == (4,)
    assert equal(state, body.named_state()) and torch.equal(torch.get_rng_state(), rng) and body.training


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    body, other = (Body(layers_of(*BUILT_IN["mlp"], seed=s), seed=s) for s in (1, 2))
    before, state = copy.deepcopy(body.named_state()), dict(other.named_state())
    last = list(state)[-1]
    with pytest.raises(KeyError, match=f"{last}.*has shape"):
        body.load_named_state(state | {last: torch.zeros(77)})
    with pytest.raises(KeyError, match=f"{last}.*is missing"):
        body.load_named_state({k: v for k, v in state.items() if k != last})
    assert equal(body.named_state(), before)
    body.load_named_state(state | {"of.another": torch.zeros(1)})
    assert equal(body.named_state(), state)
