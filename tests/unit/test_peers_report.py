"""The table of tests/benchmarks/peers.py: bounds, ratios, and what counts as met."""

import pytest

from tests.benchmarks.peers import missing
from tests.benchmarks.peers_arms import GROUPS, decoupled_bound, pipeline_bound
from tests.benchmarks.peers_report import result, text

COSTS = {"bound": 1.8, "heads": ["Conv2d"], "head_share": 0.15, "saved_input_gradient_share": 0.05}


def line(repeat, rates, network="cnn"):
    blocks = [{"name": "block0", "layers": ["conv1"], "compute_of_training": 0.9 + repeat / 100, "compute_ms": 300.0,
               "transfer": 0.01, "wait_input": 0.0, "wait_output": 0.0}]  # fmt: skip
    arms = {arm: {"samples_per_s": rate, "step_ms": 128_000 / rate} for arm, rate in rates.items()}
    for name in ("unlocked", "unlocked_one_process"):
        if name in arms:
            arms[name]["blocks"] = blocks
    return {"repeat": repeat, "network": network, "group": "any", "arms": arms}


def found(ours=170.0, ddp=160.0):
    rates = {"unlocked": ours, "backprop_2_threads": 140.0, "backprop_1_thread": 100.0, "ddp_2_ranks": ddp}
    rates |= {"gpipe_m2": 90.0, "gpipe_m8": 120.0, "1f1b_m8": 125.0, "unlocked_one_process": 95.0}
    noise = {arm: 3 * rate for arm, rate in rates.items()}
    lines = [line(0, rates), line(1, noise), line(2, rates), line(0, {"unlocked": 9000.0}, "mlp")]
    return result(lines, "cnn", COSTS)


def test_ratios_are_of_medians_and_the_best_pipeline_is_the_fastest():
    shown = found()
    assert shown["ratios"] == pytest.approx(
        {"backprop_2_threads": 170 / 140, "backprop_1_thread": 1.7, "torch_pipelining_best": 170 / 125,
         "ddp_2_ranks": 170 / 160}
    )  # fmt: skip
    assert shown["torch_pipelining_best"] == "1f1b_m8"
    assert shown["met"] == {"backprop_2_threads": True, "backprop_1_thread": True, "torch_pipelining_best": False,
                            "ddp_2_ranks": True}  # fmt: skip
    assert shown["arms"]["unlocked"]["bound_samples_per_s"] == pytest.approx(180)
    assert shown["arms"]["gpipe_m2"]["fraction_of_bound"] == pytest.approx(90 / 133.333, rel=1e-4)
    assert shown["own_bound_samples_per_s"] == pytest.approx(128_000 / 300)


@pytest.mark.parametrize(("ours", "ddp", "is_met"), [(176, 185, True), (170, 185, False), (176, 179, False)])
def test_a_loss_to_data_parallelism_counts_as_met_only_close_to_a_bound_below_it(ours, ddp, is_met):
    assert found(ours, ddp)["met"]["ddp_2_ranks"] is is_met


def test_the_table_shows_a_loss_as_such():
    shown = text({"cnn": found(ours=100.0)})
    assert "0.62 x ddp_2_ranks, target 1: MISSED" in shown
    assert "compute_of_training 0.910" in shown


def test_bounds_are_those_of_the_formulas():
    assert pipeline_bound(2, 2) == pytest.approx(4 / 3) and pipeline_bound(2, 16) == pytest.approx(32 / 17)
    assert decoupled_bound(2, 0.1, 0.1) == 2 and decoupled_bound(2, 0.25, 0.0) == 1.6


def test_a_round_runs_every_group_before_the_next_begins_and_what_is_there_is_not_repeated():
    done = [{"repeat": 0, "network": "cnn", "group": GROUPS[0]}]
    todo = list(missing(done, 2, ["cnn"]))
    assert todo == [(0, "cnn", group) for group in GROUPS[1:]] + [(1, "cnn", group) for group in GROUPS]
