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


@pytest.mark.parametrize("factory", ["Unused", "SharedWeights", "Tied", "shared_in_sequence"], ids=lambda name: name)
def test_a_module_whose_weights_do_not_each_belong_to_one_layer_is_refused(factory):
    assert "shared or unused" in refusal_of(f"wrong_networks:{factory}")


def test_a_module_that_computes_differently_in_evaluation_by_its_own_code_is_refused():
    """A trace keeps `self.training` as it was: evaluation would go on dropping."""
    assert "nn.Dropout" in refusal_of("wrong_networks:FunctionalDropout")


def test_a_factory_that_returns_no_module_is_refused():
    assert "returned list, expected an nn.Module" in refusal_of("wrong_networks:a_list")
    assert "returned NoneType, expected an nn.Module" in refusal_of("wrong_networks:nothing")


@pytest.mark.parametrize("path", ["wrong_networks", "wrong_networks:", ":sequence", "", ":"])
def test_a_malformed_path_is_refused(path):
    assert f"got {path!r}, expected package.module:function" in refusal_of(path)


@pytest.mark.parametrize(
    "path", ["no_such_package:net", "wrong_networks:missing", "wrong_networks:number", "..relative:net"]
)
def test_a_path_that_does_not_import_as_a_function_is_refused(path):
    assert f"{path!r} does not import as a function" in refusal_of(path)


def test_tracing_leaves_the_modes_of_a_module_as_its_author_set_them(tmp_path):
    (tmp_path / "frozen_networks.py").write_text(
        textwrap.dedent("""
            from torch import nn

            class Frozen(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.a, self.b = nn.BatchNorm1d(4).eval(), nn.Linear(4, 4)

                def forward(self, x):
                    return self.b(self.a(x))
        """)
    )
    layers = network_layers(NetworkSpec(factory="frozen_networks:Frozen"), (4,), 4, 0)
    assert [layer.build().training for layer in layers] == [False, True]
    assert torch.isfinite(Body(layers, seed=0)(torch.randn(2, 4))).all()
    sys.modules.pop("frozen_networks")
