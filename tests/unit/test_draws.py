import pytest
import torch
from torch import nn

from actors.networks.body import Body
from actors.networks.layer import Layer
from actors.networks.network import NetworkSpec, network_layers

NAMES = ["drop1", "keep", "drop2", "drop3"]


def dropouts(*names, seed=3):
    """Layers that leave the input as it is but for a dropout in every one whose name starts with `drop`."""
    make = {name: (lambda: nn.Dropout(0.5)) if name.startswith("drop") else nn.Identity for name in names}
    return Body([Layer(name, make[name], f"{name}.") for name in names], seed=seed)


def mask(body, draw, size=256):
    return (body(torch.ones(2, size), draw) != 0).int()


def test_a_draw_can_be_repeated():
    body = dropouts(*NAMES)
    first = mask(body, 5)
    mask(body, 6)
    torch.manual_seed(1)
    torch.rand(17)
    assert torch.equal(mask(body, 5), first)
    assert torch.equal(mask(dropouts(*NAMES), 5), first), "an equal body draws the same"


@pytest.mark.parametrize("cut", range(1, len(NAMES)))
def test_draws_do_not_depend_on_the_cut(cut):
    whole, first, second = dropouts(*NAMES), dropouts(*NAMES[:cut]), dropouts(*NAMES[cut:])
    x = torch.randn(2, 256)
    for draw in (0, 1, 1000):
        h = first(x, draw)
        torch.rand(draw % 7 + 1)  # another process would be anywhere in its own stream
        assert torch.equal(second(h, draw), whole(x, draw))


def test_draws_do_not_depend_on_other_blocks():
    alone = mask(dropouts("drop2"), 4)
    others = dropouts("drop1", "drop3")
    body = dropouts("drop2")
    mask(others, 4)
    assert torch.equal(mask(body, 4), alone)
    x = dropouts("drop1")(torch.ones(2, 256), 4)
    assert torch.equal((dropouts("drop1", "drop2")(torch.ones(2, 256), 4) != 0), (x != 0) & (alone != 0))


def test_draws_differ_between_passes():
    body = dropouts("drop1")
    masks = [mask(body, draw) for draw in [*range(20), 10**6, 2**40]]
    assert not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


def test_draws_differ_between_seeds():
    masks = [mask(dropouts("drop1", seed=seed), 0) for seed in range(10)]
    assert not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


def test_draws_differ_between_layers():
    assert not torch.equal(mask(dropouts("drop1"), 0), mask(dropouts("drop2"), 0))


def test_neighbouring_draws_of_neighbouring_seeds_are_unrelated():
    """A sum of seed and draw would make (seed, draw + 1) and (seed + 1, draw) the same."""
    assert not torch.equal(mask(dropouts("drop1", seed=0), 1), mask(dropouts("drop1", seed=1), 0))


def test_two_dropouts_in_one_layer_draw_different_masks():
    layer = Layer("pair", lambda: nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), "pair.")
    kept = mask(Body([layer], seed=0), 0, size=4096).float().mean()
    assert 0.2 < kept < 0.3, "equal masks would keep a half"


def test_evaluation_draws_nothing():
    body = dropouts(*NAMES).eval()
    before = torch.get_rng_state()
    assert mask(body, None).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_built_in_dropout_layer_draws_alike_in_any_cut():
    spec = NetworkSpec("vgg", options={"depth": 11, "width": 0.0625, "batch_norm": False, "dropout": 0.5})
    layers = network_layers(spec, (1, 8, 8), 10, seed=1)
    cut = len(layers) - 3
    whole = Body(network_layers(spec, (1, 8, 8), 10, seed=1), seed=1)
    parts = [Body(layers[:cut], seed=1), Body(layers[cut:], seed=1)]
    x = torch.randn(4, 1, 8, 8)
    for draw in (0, 7):
        assert torch.equal(parts[1](parts[0](x.clone(), draw), draw), whole(x.clone(), draw))
    assert not torch.equal(whole(x.clone(), 0), whole(x.clone(), 1))


class NoisyLinear(nn.Linear):
    """A user's layer that is a Linear by inheritance but draws."""

    def forward(self, x):
        return super().forward(x) + torch.randn(x.shape[0], self.out_features)


class NoisyResidual(nn.Module):
    """A user's layer whose parts draw nothing but whose own forward does."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.linear(x) * torch.rand(())


@pytest.mark.parametrize(
    "make",
    [
        lambda: NoisyLinear(8, 8),
        NoisyResidual,
        lambda: nn.Sequential(nn.Linear(8, 8), NoisyLinear(8, 8)),
        lambda: nn.RReLU(),
        lambda: nn.Sequential(nn.Sequential(nn.AlphaDropout(0.5))),
    ],
    ids=["subclass of Linear", "own forward", "nested", "RReLU", "AlphaDropout"],
)
def test_a_layer_that_draws_in_its_own_way_draws_by_its_name_too(make):
    layer = Layer("noisy", make, "noisy.")
    torch.manual_seed(0)
    body = Body([layer], seed=5)
    x = torch.randn(3, 8)
    first = body(x, 2)
    torch.rand(5)
    assert torch.equal(body(x, 2), first)
    assert not torch.equal(body(x, 3), first)
