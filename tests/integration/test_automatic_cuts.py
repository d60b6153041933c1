"""`network.blocks: auto` finds cuts once; after that the run is one with these cuts, given by hand."""

import pytest
from omegaconf import OmegaConf

from actors.errors import UserError
from orchestrator import automatic_cuts
from orchestrator.api import resume
from tests.runs import Replacing, block_weights, config_of, run

AUTO = {"blocks": "auto", "num_blocks": 2, "channels": [4, 8, 12, 8]}


def kept(folder):
    return OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))["network"]


@pytest.fixture
def unmeasured(monkeypatch):
    """From here on nothing may be measured any more."""

    def refuse():
        def measure(*_):
            raise AssertionError("the layers were measured again")

        monkeypatch.setattr(automatic_cuts, "layer_costs", measure)

    return refuse


@pytest.mark.parametrize("rule", ["local", "backprop"])
def test_automatic_cuts_give_the_weights_of_the_same_cuts_by_hand(tmp_path, rule):
    found = run(tmp_path / "auto", network=AUTO, rule={"name": rule})
    cuts = kept(tmp_path / "auto")["cuts"]
    assert len(cuts) == 1 and len(found.blocks) == 2
    by_hand = run(
        tmp_path / "by_hand", network={**AUTO, "blocks": None, "num_blocks": None, "cuts": cuts}, rule={"name": rule}
    )
    assert block_weights(found) == block_weights(by_hand)


def test_a_run_that_goes_on_keeps_the_cuts_that_were_found_when_it_began(tmp_path, unmeasured):
    first = run(tmp_path / "run", network=AUTO)
    cuts = kept(tmp_path / "run")["cuts"]
    unmeasured()
    again = run(tmp_path / "run", network=AUTO)
    assert again.weights_sha256 == first.weights_sha256
    longer = run(tmp_path / "run", network=AUTO, training={"epochs": 3})
    assert longer.epochs == 3 and kept(tmp_path / "run")["cuts"] == cuts
    assert resume(tmp_path / "run", progress=False).weights_sha256 == longer.weights_sha256


def test_another_number_of_blocks_is_another_run(tmp_path):
    run(tmp_path / "run", network=AUTO)
    with pytest.raises(UserError, match=r"it differs in network\.num_blocks"):
        run(tmp_path / "run", network={**AUTO, "num_blocks": 3})


def test_without_a_number_there_is_a_block_for_every_core(tmp_path, monkeypatch):
    monkeypatch.setattr(automatic_cuts.os, "sched_getaffinity", lambda _: {0, 1, 2})
    found = run(tmp_path / "run", network={**AUTO, "num_blocks": None})
    assert len(found.blocks) == 3


def test_there_are_not_more_blocks_than_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(automatic_cuts.os, "sched_getaffinity", lambda _: set(range(64)))
    found = run(tmp_path / "run", network={**AUTO, "num_blocks": None})
    assert [block["name"] for block in found.blocks] == [f"block{i}" for i in range(5)]


def test_more_blocks_than_layers_are_refused_by_number(tmp_path):
    with pytest.raises(UserError, match=r"network\.num_blocks: got 9, expected at most 5, .*; lower it"):
        run(tmp_path / "run", network={**AUTO, "num_blocks": 9})
    assert not (tmp_path / "run").exists()


def test_settings_of_a_block_that_the_cuts_do_not_make_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(automatic_cuts.os, "sched_getaffinity", lambda _: {0, 1})
    optimizer = Replacing(name="sgd", lr=0.05, blocks={2: {"lr": 0.1}})
    with pytest.raises(UserError, match=r"optimizer\.blocks\.2: expected the index of a block, 0 to 1"):
        run(tmp_path / "run", network={**AUTO, "num_blocks": None}, optimizer=optimizer)


def test_what_auto_can_not_go_with_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"network\.blocks: got 'auto' with schedule 'sequential'"):
        config_of(tmp_path, network=AUTO, schedule={"name": "sequential"})
    with pytest.raises(UserError, match=r"network\.num_blocks: got 2 with network\.blocks 3"):
        config_of(tmp_path, network={**AUTO, "blocks": 3})
