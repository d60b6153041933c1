"""Modules of the user's that can't be cut into layers are refused, never trained wrongly."""

import sys
import textwrap

import pytest
import torch

from actors.errors import UserError
from actors.networks.body import Body
from actors.networks.network import NetworkSpec, network_layers

WRONG = """
    import torch
    from torch import nn
    from torch.nn import functional

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else self.b(x)

    class TwoInputs(Branches):
        def forward(self, x, y):
            return self.a(x) + self.b(y)

    class TwoOutputs(Branches):
        def forward(self, x):
            x = self.a(x)
            return x, self.b(x)

    class Unused(Branches):
        def forward(self, x):
            return self.a(x)

    class SharedWeights(Branches):
        def __init__(self):
            super().__init__()
            self.b = nn.Tanh()

        def forward(self, x):
            return self.a(self.b(self.a(x)))

    class Tied(Branches):
        def __init__(self):
            super().__init__()
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    class FunctionalDropout(Branches):
        def forward(self, x):
            return self.b(functional.dropout(self.a(x), 0.5, self.training))

    def shared_in_sequence():
        linear = nn.Linear(4, 4)
        return nn.Sequential(linear, nn.ReLU(), linear)

    def a_list():
        return [nn.Linear(4, 4), nn.Linear(4, 4)]

    def nothing():
        pass

    number = 3
"""


@pytest.fixture(autouse=True)
def wrong_module(tmp_path, monkeypatch):
    (tmp_path / "wrong_networks.py").write_text(textwrap.dedent(WRONG))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("wrong_networks", None)
    yield
    sys.modules.pop("wrong_networks", None)


def refusal_of(factory):
    with pytest.raises(UserError, match=r"^network\.factory: ") as refusal:
        network_layers(NetworkSpec(factory=factory), (4,), 4, 0)
    assert "\n" not in str(refusal.value), "one sentence"
    return str(refusal.value)


def test_a_module_that_branches_on_its_data_is_refused():
    assert "Branches can't be traced" in refusal_of("wrong_networks:Branches")


def test_a_module_with_two_inputs_is_refused():
    assert "TwoInputs takes 2 inputs, expected one tensor" in refusal_of("wrong_networks:TwoInputs")


def test_a_module_with_two_outputs_is_refused():
    refusal_of("wrong_networks:TwoOutputs")


@pytest.mark.parametrize("factory", ["Unused", "shared_in_sequence"], ids=lambda name: name)
def test_a_module_whose_weights_do_not_each_belong_to_one_layer_is_refused(factory):
    assert "weight" in refusal_of(f"wrong_networks:{factory}")


@pytest.mark.parametrize("factory", ["SharedWeights", "Tied"], ids=lambda name: name)
def test_weights_that_are_used_twice_stay_in_one_layer(factory):
    layers = network_layers(NetworkSpec(factory=f"wrong_networks:{factory}"), (4,), 4, 0)
    assert len(layers) == 1


def test_dropout_by_the_modules_own_flag_stops_in_evaluation():
    """A trace would keep `self.training` as it was."""
    body = Body(network_layers(NetworkSpec(factory="wrong_networks:FunctionalDropout"), (4,), 4, 0), seed=0)
    x = torch.randn(64, 4)
    assert not torch.equal(body.train()(x, 0), body(x, 1))
    assert torch.equal(body.eval()(x, 0), body(x, 1))
