"""A last batch of one sample is refused before anything starts if a layer, a head or a rule has batch norm."""

import pytest

from actors.errors import UserError
from orchestrator.plan import make_plan
from tests.parity.test_methods import METHODS, sections_of
from tests.runs import Replacing, config_of, run

PLAIN = {"name": "mlp", "widths": [12, 12], "batch_norm": False, "blocks": 3}
"""No layer of it has batch norm."""
ONE_LEFT = {"size": 17, "batch_size": 16}
HEADS = ("async_dgl", "dgl", "greedy_layerwise", "overlapping_local", "interlocking", "chunked_local", "infopro")
REFUSED = {
    **dict.fromkeys(HEADS, "block 0's objective"),
    **dict.fromkeys(("cdni", "dni", "dni_fully_unlocked"), "block 0's rule"),
    "auglocal": "block 1's objective",  # block 0's copies a layer of this network
}


def sections(method, network=PLAIN):
    return {**sections_of(method), "network": Replacing(network), "data": ONE_LEFT, "training": {"epochs": 1}}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_either_refuses_a_last_batch_of_one_sample_or_trains_on_it(tmp_path, method):
    if method not in REFUSED:
        summary = run(tmp_path / "run", **sections(method))
        assert summary.status == "completed" and summary.blocks[-1]["version"] == 2
        return
    with pytest.raises(UserError, match=rf"one sample of 17, and batch norm needs two \({REFUSED[method]} has it\)"):
        make_plan(config_of(tmp_path / "run", **sections(method)))


def test_a_layer_is_named_first_and_a_linear_head_has_no_batch_norm(tmp_path):
    with pytest.raises(UserError, match=r"block 0's layers has it"):
        make_plan(config_of(tmp_path / "run", **sections("dgl", {**PLAIN, "batch_norm": True})))
    linear = {"name": "cross_entropy", "head": {"kind": "linear"}}
    assert run(tmp_path / "run", **{**sections("dgl"), "objective": linear}).status == "completed"
