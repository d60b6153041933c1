"""AugLocal's auxiliary networks: how deep, made of what, and that they are nobody else's."""

import itertools
import sys
import textwrap

import pytest
import torch
from torch import nn

from actors.block import Block
from actors.errors import UserError
from actors.messages import Flags, Kind, Message
from actors.needs import Place
from actors.networks.layer import Layer
from actors.networks.network import NetworkSpec, network_layers
from actors.networks.resnet import ResidualBlock
from actors.nn.adapted import DoesNotFit, adapted, output_shape
from actors.nn.sampled_layers import SampledHead, grouped, spread
from actors.objectives.auglocal import pyramid_depth
from actors.scored import way_up
from orchestrator.plan import make_plan
from orchestrator.specs import block_spec
from tests.runs import Replacing, config_of

EIGHT = {"name": "cnn", "channels": [4, 6, 6, 8, 8, 10, 10, 12], "pool_after": [2, 4]}
THEIRS = """
    import torch
    from torch import nn

    class Scale(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.by = nn.Parameter(torch.ones(channels, 1, 1))
            self.mix = nn.Conv2d(channels, channels, 1)

        def forward(self, x):
            return self.mix(x) * self.by

    def fits(num_classes):
        return nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), Scale(5), nn.Dropout(0.5),
                             nn.Flatten(), nn.Linear(180, 7), nn.ReLU(), nn.Linear(7, num_classes))

    def fails(num_classes):
        return nn.Sequential(nn.Conv2d(2, 5, 3), nn.Conv2d(5, 6, 3), Scale(6),
                             nn.Flatten(), nn.Linear(96, num_classes))
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    (tmp_path / "theirs_auglocal.py").write_text(textwrap.dedent(THEIRS))
    monkeypatch.syspath_prepend(tmp_path)
    yield "theirs_auglocal"
    sys.modules.pop("theirs_auglocal", None)


def blocks_of(folder, network, indices=None, **settings):
    config = config_of(folder, objective={"name": "auglocal", **settings}, network=Replacing(network))
    plan = make_plan(config)
    return [
        Block(block_spec(config, plan, index, "run", None), plan.shapes[index])
        for index in (range(len(plan.blocks)) if indices is None else indices)
    ]


def hidden(head):
    """Kinds of the layers with weights in front of the classifier."""
    return [type(m) for m in head.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][:-1]


def layers(name, **options):
    return network_layers(NetworkSpec(name=name, options=options), (2, 8, 8), 4, 0)


# ---------------------------------------------------------------- depth


def test_the_depths_are_the_papers_pyramid():
    """d_i = max(1, round((1 - tau i / (L - 2)) d + tau i / (L - 2))), by hand for d = 6, tau = 0.5, L = 8."""
    found = [pyramid_depth(6, 0.5, way_up(Place(index, 8))) for index in range(7)]
    assert found == [6, 6, 5, 5, 4, 4, 4]  # 6, 5.58, 5.17, 4.75, 4.33, 3.92, 3.5
    assert [pyramid_depth(6, 1.0, way_up(Place(index, 7))) for index in range(6)] == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("blocks", [2, 3, 5, 16])
@pytest.mark.parametrize("tau", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("depth", [1, 2, 9])
def test_depths_never_rise_and_never_fall_below_one(depth, tau, blocks):
    found = [pyramid_depth(depth, tau, way_up(Place(index, blocks))) for index in range(blocks - 1)]
    assert found[0] == depth
    assert all(a >= b >= 1 for a, b in itertools.pairwise(found))
    if blocks > 2 and tau in (0.0, 1.0):
        assert found[-1] == (depth if tau == 0 else 1)


@pytest.mark.parametrize(("available", "wanted", "places"), [
    (6, 1, [3]), (6, 2, [1, 4]), (6, 3, [1, 3, 5]), (4, 4, [0, 1, 2, 3]), (2, 5, [0, 1]), (0, 3, []), (53, 2, [13, 39]),
])  # fmt: skip
def test_layers_are_sampled_evenly(available, wanted, places):
    assert spread(available, wanted) == places


def test_every_auxiliary_network_is_as_deep_as_the_formula_says(tmp_path):
    """T28: nine layers, each a block by itself, d = 4; above the last hidden block only the classifier is left."""
    blocks = blocks_of(tmp_path, {**EIGHT, "blocks": 9}, depth=4)
    formula = [pyramid_depth(4, 0.5, index / 7) for index in range(8)]
    assert [len(hidden(block.objective.head)) for block in blocks[:-1]] == [
        min(depth, max(1, 7 - index)) for index, depth in enumerate(formula)
    ]
    assert all(kind is nn.Conv2d for block in blocks[:-1] for kind in hidden(block.objective.head))
    assert isinstance(blocks[-1].objective.head, nn.Identity)


# ---------------------------------------------------------------- what the copies are


def test_a_copy_has_the_later_layers_channels_and_takes_those_that_come(tmp_path):
    (block,) = blocks_of(tmp_path, {**EIGHT, "blocks": 9}, indices=[0], depth=3)
    convolutions = [m for m in block.objective.head.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(4, 6), (6, 8), (8, 10)], "conv3, conv5, conv7"
    seen = {}
    for number, unit in enumerate(block.objective.head.body.layers):
        convolution = next(m for m in unit.modules() if isinstance(m, nn.Conv2d))
        convolution.register_forward_pre_hook(
            lambda _, args, number=number: seen.update({number: tuple(args[0].shape[2:])})
        )
    block.objective.scores(torch.randn(2, 4, 8, 8))
    assert seen == {0: (4, 4), 1: (2, 2), 2: (2, 2)}, "the sizes that these layers have in the network"


def test_residual_blocks_are_adapted_with_their_shortcut():
    later = layers("resnet", depth=14, width=4)[1:]
    head = SampledHead(later, (4, 8, 8), 4, depth=3)
    copies = [m for m in head.modules() if isinstance(m, ResidualBlock)]
    made = [(c.conv1.in_channels, c.conv1.out_channels, c.conv1.stride) for c in copies]
    assert made == [(4, 4, (1, 1)), (4, 8, (1, 1)), (8, 16, (1, 1))], "the second block of every stage"
    kinds = [type(c.shortcut) for c in copies]
    assert kinds == [nn.Identity, nn.Sequential, nn.Sequential], "an identity can't change the number of channels"
    assert head(torch.randn(3, 4, 8, 8)).shape == (3, 4)


@pytest.mark.parametrize(
    ("first", "left"), [("norm1", ["norm1", "relu1", "pool1"]), ("relu1", ["relu1", "pool1"]), ("conv2", [])]
)
def test_what_a_cut_leaves_of_a_layer_comes_before_the_sampled_ones(first, left):
    network = layers("vgg", width=0.125)
    start = [layer.name for layer in network].index(first)
    shape = (8, 4, 4) if first == "conv2" else (8, 8, 8)
    rest, units = grouped(network[start:], shape)
    assert [layer.name for unit in rest for layer in unit.layers] == left
    assert [unit.layers[0].name for unit in units] == [f"conv{number}" for number in range(2, 9)]
    assert [layer.name for layer in units[0].layers] == ["conv2", "norm2", "relu2", "pool2"]
    assert units[0].shapes[0] == (8, 4, 4)
    h = torch.randn(4, *shape)
    before = h.clone()
    SampledHead(network[start:], shape, 4, depth=2)(h)
    assert torch.equal(h, before), "an in-place activation comes first in one of them"


@pytest.mark.parametrize(("module", "was", "shape"), [
    (nn.Conv2d(6, 7, 3, stride=2, padding=1, bias=False), (6, 8, 8), (4, 8, 8)),
    (nn.Sequential(nn.Conv2d(6, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 9, 1)), (6, 8, 8), (4, 8, 8)),
    (nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 9, 1)), (6, 8, 8), (4, 8, 8)),
    (nn.Sequential(nn.GroupNorm(2, 6), nn.Conv2d(6, 9, 1)), (6, 8, 8), (4, 8, 8)),
    (nn.Conv2d(6, 6, 3, groups=6), (6, 8, 8), (6, 5, 5)),
    (nn.Sequential(nn.Flatten(), nn.Linear(96, 5)), (6, 4, 4), (3, 4, 4)),
    (nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 5), nn.LayerNorm(5)), (12,), (8,)),
    (ResidualBlock(6, 6, 1), (6, 8, 8), (4, 8, 8)),
    (ResidualBlock(6, 10, 2), (6, 8, 8), (4, 8, 8)),
])  # fmt: skip
def test_an_adapted_layer_differs_in_what_it_takes_only(module, was, shape):
    expected = output_shape(module, was)
    found = adapted(module, was, shape)
    assert output_shape(found, shape)[:1] == expected[:1]
    if shape[1:] == was[1:]:
        assert output_shape(found, shape) == expected
    kinds = [type(m) for m in found.modules() if not any(m.children())]
    if not isinstance(found, ResidualBlock):
        assert kinds == [type(m) for m in module.modules() if not any(m.children())]
    convolution = next((m for m in found.modules() if isinstance(m, nn.Conv2d)), None)
    original = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is not None:
        for name in ("out_channels", "kernel_size", "stride", "padding", "groups"):
            assert getattr(convolution, name) == getattr(original, name)
        assert (convolution.bias is None) == (original.bias is None)


@pytest.mark.parametrize("module", [nn.Conv2d(6, 6, 3, groups=6), nn.PReLU(6), nn.GroupNorm(3, 6)], ids=repr)
def test_a_layer_with_no_form_for_other_channels_is_refused(module):
    with pytest.raises(DoesNotFit, match=type(module).__name__):
        adapted(module, (6, 8, 8), (4, 8, 8))


def test_vectors_follow_images_where_the_network_flattens():
    network = [
        Layer("a", lambda: nn.Conv2d(3, 8, 3, padding=1), ""), Layer("flat", nn.Flatten, ""),
        Layer("b", lambda: nn.Linear(512, 6), ""), Layer("c", lambda: nn.Linear(6, 4), ""),
    ]  # fmt: skip
    head = SampledHead(network, (3, 8, 8), 4, depth=1)
    assert [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)] == [(12, 6), (6, 4)]
    assert head(torch.randn(2, 3, 8, 8)).shape == (2, 4)


# ---------------------------------------------------------------- whose they are


def test_copies_have_weights_of_their_own(tmp_path, theirs):
    """Neither the tensors nor the initial values of the layers they are copied from, and no part of the network."""
    for network in ({**EIGHT, "blocks": 4}, {"factory": f"{theirs}:fits", "cuts": ["2", "5"]}):
        first, second = blocks_of(tmp_path, network, indices=[0, 1], depth=9)
        own = {tensor.data_ptr() for block in (first, second) for tensor in block.body.named_state().values()}
        assert not own & {p.data_ptr() for p in first.objective.parameters()}
        before, names = second.digests(), set(first.digests())
        later = {tuple(p.shape): p for p in second.body.parameters() if p.dim() in (2, 4)}
        same = [p for p in first.objective.parameters() if tuple(p.shape) in later]
        assert same and not any(torch.equal(p, later[tuple(p.shape)]) for p in same), "nor the same initial weights"
        with torch.no_grad():
            for parameter in first.objective.parameters():
                parameter.fill_(3.0)
        (again,) = blocks_of(tmp_path, network, indices=[1], depth=9)
        assert second.digests() == again.digests() == before
        assert set(first.digests()) == names
        assert not any("head" in name or "classifier" in name for name in names), "export has the network only"


def test_random_draws_inside_a_copy_depend_on_the_batch_alone(tmp_path, theirs):
    def loss(batch_id, state):
        (block,) = blocks_of(tmp_path, {"factory": f"{theirs}:fits", "cuts": ["2", "5"]}, indices=[0], depth=2)
        assert any(isinstance(m, nn.Dropout) for m in block.objective.modules())
        torch.manual_seed(state)
        h = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(8) % 4
        block.now(Message(Kind.ACTIVATION, batch_id, flags=Flags.NONE, tensors={"h": h, "labels": labels}))
        return float(block.loss)

    assert loss(0, state=1) == loss(0, state=2)
    assert loss(0, state=1) != loss(1, state=1)


def test_a_users_layer_that_can_not_be_adapted_is_refused_in_one_sentence(tmp_path, theirs):
    network = {"factory": f"{theirs}:fails", "cuts": ["1", "3"]}
    with pytest.raises(
        UserError, match=r"objective\.name: .*layer '2' .*shape \(5, .*Scale.*; put the layer"
    ) as refusal:
        blocks_of(tmp_path, network, indices=[0], depth=1)
    assert "\n" not in str(refusal.value)
    blocks_of(tmp_path, network, indices=[0], depth=2)  # after its own predecessor it fits as it is
