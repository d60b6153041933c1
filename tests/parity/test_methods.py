"""T01: every method of `configs/methods/`, and variants, over Ray equal their runs in this process, bit for bit."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.runs import SMALL, Replacing, block_weights, run

METHODS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "configs/methods").glob("*.yaml"))}

LATER = {"name": "pipeline", "delay_per_hop": 1}
VARIANTS = {
    "sign symmetry, frSF": {"rule": {"name": "sign_symmetry", "variant": "frsf"}},
    "sign symmetry, brSF": {"rule": {"name": "sign_symmetry", "variant": "brsf"}},
    "DFA, micro": {"rule": {"name": "direct_feedback_alignment", "feedback": "micro"}, "schedule": LATER},
    "DRTP, micro": {"rule": {"name": "drtp", "feedback": "micro"}},
    "n-wise, reach 3": {"rule": {"name": "backprop", "reach": 3, "losses": "every", "combine": "farthest"}},
    "greedy, k = 1": {"objective": {"name": "cross_entropy", "head": {"kind": "cnn", "depth": 0}},
                      "schedule": {"name": "sequential"}},
    "greedy, k = 3": {"objective": {"name": "cross_entropy", "head": {"kind": "cnn", "depth": 2}},
                      "schedule": {"name": "sequential"}},
    "overlapping, late, recomputed": {"rule": {"name": "backprop", "reach": 2, "losses": "every"},
                                      "schedule": {**LATER, "late": "recompute"}},
    "Kolen-Pollack, late, stashed": {"rule": {"name": "kolen_pollack"}, "schedule": {**LATER, "late": "stash"}},
}  # fmt: skip
"""Settings of the methods that no file of `configs/methods/` has."""


def sections_of(method):
    """The sections of a method's file or of a variant; its optimizer keys are put over those of the small run."""
    plain = VARIANTS.get(method) or OmegaConf.to_container(OmegaConf.load(METHODS[method]))
    replaced = {name: Replacing(plain[name]) for name in ("rule", "objective", "schedule") if name in plain}
    return {**plain, **replaced}


@pytest.mark.parametrize("method", [*METHODS, *VARIANTS])
def test_a_method_over_ray_equals_its_reference(tmp_path, ray_cluster, method):
    sections = sections_of(method)
    if sections.get("schedule", {}).get("name") == "replay":
        pytest.skip("replay is not deterministic by definition")
    here = run(tmp_path / "here", **sections)
    there = run(tmp_path / "there", cluster=ray_cluster, **sections)
    assert block_weights(here) == block_weights(there)
    assert here.test_accuracy == there.test_accuracy
    for edge in there.edges:
        assert edge["sent"] == edge["trained"] > 0 and edge["in_flight"] == edge["buffered"] == 0, edge


@pytest.mark.parametrize("method", METHODS)
def test_snapshots_change_no_weight_of_a_method(tmp_path, method):
    sections = sections_of(method)
    if sections.get("schedule", {}).get("name") == "replay":
        pytest.skip("replay is not deterministic by definition")
    epoch = {"training": {**sections.pop("training", {}), "epochs": 1}}
    without = run(tmp_path / "without", **sections, **epoch)
    keeping = {"checkpoint": {"every_batches": 2}, "recovery": {"mode": "local"}}
    kept = run(tmp_path / "kept", **sections, **epoch, **keeping)
    assert len([event for event in kept.events if event["event"] == "checkpoint"]) >= 5
    assert block_weights(kept) == block_weights(without)
    assert kept.test_accuracy == without.test_accuracy


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_every_block_to_the_end(tmp_path, method):
    sections = sections_of(method)
    num_batches = 11 * SMALL["training"]["epochs"]
    summary = run(tmp_path / "run", **sections)
    assert [block["updates"] for block in summary.blocks] == [num_batches] * len(summary.blocks)
    assert summary.test_accuracy is not None
