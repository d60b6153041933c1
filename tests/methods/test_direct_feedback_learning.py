"""T16, T17: direct feedback teaches hidden blocks, and does so by the errors of their own samples."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from actors.rules.direct_feedback_alignment import DirectFeedbackAlignment
from tests.conftest import ROOT
from tests.contract.plugin_chain import Chain, chain_config
from tests.runs import Replacing, run

DFA = "direct_feedback_alignment"
HERE = "tests.methods.test_direct_feedback_learning"


def tanh_network(num_classes, input_shape):
    size = torch.Size(input_shape).numel()
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(size, 9, bias=False), nn.Tanh()),
        nn.Sequential(nn.Linear(9, 7, bias=False), nn.Tanh()),
        nn.Linear(7, num_classes, bias=False),
    )


class Shuffled(DirectFeedbackAlignment):
    """Hidden blocks get every sample's neighbour's error."""

    def later(self, p, origin, tensors):
        return super().later(p, origin, {"error": tensors["error"].roll(1, 0)})


def test_from_zero_weights_it_moves_one_more_layer_per_step_where_backprop_is_stuck():
    network = {"factory": f"{HERE}:tanh_network", "blocks": 3}
    moved = {}
    for rule in ("backprop", DFA):
        chain, moved[rule] = Chain(chain_config(rule={"name": rule}, network=network)), []
        with torch.no_grad():
            for block in chain.blocks:
                for parameter in block.body.parameters():
                    parameter.zero_()
        for step in range(3):
            chain.train(step, step + 1)
            moved[rule].append([any(bool(p.any()) for p in block.body.parameters()) for block in chain.blocks])
    assert moved["backprop"] == [[False, False, False]] * 3
    assert moved[DFA] == [[True, False, False], [True, True, False], [True, True, True]]


TASK = {
    "data": Replacing(
        {"name": "generated", "shape": [1, 8, 8], "classes": 8, "size": 512, "test_size": 512, "batch_size": 32}
    ),
    "network": Replacing({"name": "mlp", "widths": [12, 12], "activation": "tanh", "blocks": 3}),
    "training": {"epochs": 4},
    "evaluation": {"every_epochs": 0},
}
"""Two narrow hidden layers: random ones lose most of what tells eight classes apart."""


def test_it_learns_hidden_layers_and_only_if_errors_belong_to_their_samples(tmp_path):
    def accuracy(folder, **rule):
        return run(tmp_path / folder, rule=Replacing(rule), **TASK).test_accuracy

    shallow = accuracy("shallow", name=DFA, scale=0)
    assert shallow < 0.5
    assert accuracy("dfa", name=DFA) > shallow + 0.3
    assert accuracy("drtp", name="drtp") > shallow + 0.3
    assert accuracy("shuffled", factory=f"{HERE}:Shuffled") < shallow + 0.05


@pytest.mark.parametrize("rule", [DFA, "drtp"])
def test_without_feedback_hidden_blocks_never_change(rule):
    network = {"name": "mlp", "widths": [10, 9, 8], "blocks": 4}
    chain, fresh = (Chain(chain_config(rule={"name": rule, "scale": 0}, network=network)) for _ in range(2))
    chain.train(0, 6)
    changed = [trained[0] != start[0] for trained, start in zip(chain.digests(), fresh.digests(), strict=True)]
    assert changed == [False, False, False, True]


@pytest.mark.parametrize("name", [DFA, "drtp"])
def test_the_method_as_shipped_learns(tmp_path, name):
    method = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "methods" / f"{name}.yaml"))
    assert method["schedule"].get("delay_per_hop", 0) == (2 if name == DFA else 0)
    assert run(tmp_path / "run", **TASK, **method).test_accuracy > 0.7
