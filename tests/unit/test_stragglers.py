import json
import sys
from dataclasses import replace

import pytest

from tests.benchmarks.figures import draw
from tests.benchmarks.stragglers import learning_curve
from tests.benchmarks.stragglers_figure import arrivals, figure, pace, samples
from tests.benchmarks.stragglers_plan import FULL, PACED, PIPELINE, SHORT, SLOW_BLOCK, UNBOUNDED, arms
from tests.benchmarks.stragglers_report import HEADER, report
from tests.benchmarks.stragglers_verdicts import arrival_s, find, target, verdicts

SIZE = replace(SHORT, factors=(1, 2, 3), capacities=(10, 50))


def line_of(mode, capacity, factor, **changes):
    """An imagined run: a pipeline keeps the slow block's pace, replay does not care."""
    slowed = [10.0 / (factor if mode == PIPELINE else 1)] * 4
    slowed[SLOW_BLOCK] = 10.0 / factor
    blocks = [
        {"updates_per_s": pace, "distinct_samples_per_s": 128 * min(slowed), "compute_s": 0.028} for pace in slowed
    ]
    stale = 8 if mode == PACED else 11
    edges = {f"block{i}->block{i + 1}": {"mean": 1.25, "p99": 3, "max": stale, "dropped": i} for i in range(3)}
    end = 0.80 if mode == PIPELINE else 0.80 - 0.01 * factor
    return {
        "arm": {"mode": mode, "capacity": capacity, "factor": factor}, "status": "completed", "reason": None,
        "wall_s": 20.0 * factor, "blocks": blocks, "staleness": edges, "test_accuracy": end - 0.01,
        "curve": [[5.0 * factor, 20, 0.5], [10.0 * factor, 40, end], [20.0 * factor, 60, end]],
        "weights_sha256": "abc" if mode == PIPELINE else f"{mode} {factor}",
        "commit": "c0ffee", "machine": {"cores": 2, "processor": "P"},
    } | changes  # fmt: skip


def all_lines():
    return [line_of(**arm.facts) for arm in arms(SIZE)]


def verdict(lines, beginning):
    (found,) = [one for one in verdicts(lines, SIZE) if one.claim.startswith(beginning)]
    return found


# ---------------------------------------------------------------------- plan


def test_every_schedule_capacity_and_factor_is_run_once():
    planned = arms(FULL)
    assert len(planned) == len({arm.key for arm in planned}) == 45
    assert len({tuple(arm.facts.values()) for arm in planned}) == 45
    assert len(arms(SHORT)) == 6


def test_undisturbed_runs_come_first_and_the_strongest_slow_down_next():
    factors = [arm.facts["factor"] for arm in arms(FULL)]
    assert factors == [1] * 9 + [3] * 9 + [2] * 9 + [1.5] * 9 + [1.2] * 9


def test_runs_of_one_schedule_differ_in_nothing_but_capacity_and_slowness():
    for arm in arms(FULL):
        config, facts = arm.config, arm.facts
        slow = [(slow.block, slow.factor) for slow in config.faults.slow]
        assert slow == ([] if facts["factor"] == 1 else [(SLOW_BLOCK, facts["factor"])])
        assert (config.buffers.capacity, config.faults.pad) == (facts["capacity"], 4)
        assert config.staleness.max == (8 if facts["mode"] == PACED else None)
        assert config.buffers.max_reuse == (None if facts["mode"] == PIPELINE else 4)
        assert config.seed == 0 and config.training.epochs == FULL.epochs


# ---------------------------------------------------------------------- verdicts


def test_the_target_lies_two_points_below_the_end_of_the_undisturbed_pipeline():
    assert target(all_lines()) == pytest.approx(0.78)
    assert target([line for line in all_lines() if line["arm"]["factor"] != 1]) is None


def test_a_run_has_arrived_at_its_first_evaluation_at_the_target():
    line = line_of(PIPELINE, 10, 2)
    assert arrival_s(line, 0.78) == 20.0
    assert arrival_s(line, 0.81) is None and arrival_s(line, None) is None


def test_all_claims_hold_in_the_imagined_runs():
    assert [(one.holds, str(one).count(": met")) for one in verdicts(all_lines(), SIZE)] == [(True, 1)] * 4


def test_without_runs_nothing_is_claimed():
    assert [one.holds for one in verdicts([], SIZE)] == [None] * 4
    failed = [{**line, "status": "failed", "reason": "broke"} for line in all_lines()]
    assert [one.holds for one in verdicts(failed, SIZE)] == [None] * 4


def test_one_pipeline_with_other_weights_is_a_miss():
    lines = all_lines()
    next(line for line in lines if line["arm"] == {"mode": PIPELINE, "capacity": 50, "factor": 2})["weights_sha256"] = (
        "x"
    )
    found = verdict(lines, "Pipeline: the weights")
    assert found.holds is False and "5 of 6 runs" in str(found) and "**missed**" in str(found)


@pytest.mark.parametrize(("pace", "holds"), [(9.1, True), (8.9, False), (12.0, True)])
def test_under_replay_the_block_that_falls_most_decides(pace, holds):
    lines = all_lines()
    find(lines, UNBOUNDED, 50, 3)["blocks"][2]["updates_per_s"] = pace
    found = verdict(lines, "Replay without a bound")
    assert found.holds is holds
    assert f"capacity 50: {min(0.0, pace / 10 - 1):+.1%}" in found.figures


def test_the_slow_block_s_own_fall_does_not_count():
    lines = all_lines()
    find(lines, UNBOUNDED, 10, 3)["blocks"][SLOW_BLOCK]["updates_per_s"] = 0.1
    assert verdict(lines, "Replay without a bound").holds


@pytest.mark.parametrize(("capacity", "lead", "holds"), [(10, 1.04, True), (10, 1.12, False), (50, 1.2, True)])
def test_a_pipeline_may_lead_by_what_its_buffers_hold(capacity, lead, holds):
    assert SIZE.num_batches == 300
    lines = all_lines()
    find(lines, PIPELINE, capacity, 3)["blocks"][0]["updates_per_s"] = lead * 10 / 3
    assert verdict(lines, "Pipeline at factor 3").holds is holds


def test_staleness_above_the_bound_is_a_miss_where_there_is_a_bound_and_only_there():
    lines = all_lines()
    assert verdict(lines, "Replay with S").holds
    find(lines, PACED, 10, 2)["staleness"]["block1->block2"]["max"] = 9
    found = verdict(lines, "Replay with S")
    assert found.holds is False and "largest staleness 9 in 6 runs" in found.figures


# ---------------------------------------------------------------------- table and figure


def cells(text, mode, capacity, factor):
    (row,) = [row for row in text.splitlines() if row.startswith(f"| {mode} | {capacity} | {factor:g} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_table_has_a_row_for_every_run_and_says_what_was_not_reached():
    text = report(all_lines(), SIZE)
    row = cells(text, UNBOUNDED, 10, 3)
    assert row[3:] == [
        "10.0 3.3 10.0 10.0", "427 427 427 427", "not reached", "60.0", "77.0", "76.0",
        "1.2 (11), 1.2 (11), 1.2 (11)", "0 1 2",
    ]  # fmt: skip
    assert cells(text, PIPELINE, 10, 3)[5] == "30.0"
    assert "minus 2 points, 78.0 %" in text and "(of 7.0 to 7.0 ms, undisturbed)" in text and "simulated" in text
    assert all(len(cells(text, *arm.facts.values())) == len(HEADER) for arm in arms(SIZE))


def test_a_run_that_failed_has_an_empty_row_and_its_reason_below():
    lines = all_lines()
    lines[-1] |= {"status": "failed", "reason": "block1 ended the run"}
    text = report(lines, SIZE)
    assert cells(text, *lines[-1]["arm"].values())[3:] == [""] * 8
    assert "block1 ended the run" in text
    assert "not known yet" in report([], SIZE)


def test_the_figure_s_points_are_relative_to_the_undisturbed_pipeline():
    lines, factors = all_lines(), SIZE.factors
    assert pace(lines, PIPELINE, 10, factors) == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert pace(lines, UNBOUNDED, 10, factors) == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert samples(lines, UNBOUNDED, 10, factors)[1] == (2, 640)
    assert arrivals(lines, UNBOUNDED, 10, factors) == [(1, 10.0), (2, 20.0)], "at 3 the target is not reached"
    assert pace([], PIPELINE, 10, factors) == []


def test_the_figure_is_drawn_from_all_or_few_lines(tmp_path):
    pytest.importorskip("matplotlib")
    assert figure(all_lines(), SIZE, tmp_path / "all.svg") == "all.svg was drawn"
    assert figure(all_lines()[:1], SIZE, tmp_path / "one.svg") == "one.svg was drawn"
    assert "buffers of 50" in (tmp_path / "all.svg").read_text()


def test_without_matplotlib_one_sentence_takes_the_figure_s_place(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = draw(tmp_path / "a.svg", 1, 1, lambda panels: pytest.fail("nothing to draw on"))
    assert said.startswith("a.svg was not drawn: matplotlib is missing")
    assert not (tmp_path / "a.svg").exists()


def test_the_learning_curve_is_the_last_block_s_held_out_accuracy(tmp_path):
    entry = {"kind": "evaluation", "block": "block3", "split": "validation", "batch": 7, "at_s": 1.5, "accuracy": 0.5}
    others = [{"kind": "report"}, {**entry, "block": "block2"}, {**entry, "split": "test"}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*others, entry, {**entry, "at_s": 2.5}])))
    assert learning_curve(tmp_path / "metrics.jsonl", "block3") == [(1.5, 7, 0.5), (2.5, 7, 0.5)]
