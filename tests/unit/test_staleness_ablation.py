import pytest

from tests.benchmarks.ablation_plan import BACKPROP, CDNI, DGL, FULL, SHORT, arms
from tests.benchmarks.ablation_report import HEADER, figure, points, report, rows


def line_of(method, value, seed, **changes):
    last = {"updates_per_s": 10.0 + seed, "distinct_samples_per_s": 1000.0 * (value + 1) + seed}
    edges = {"block0->block1": {"mean": 1.0 + seed, "max": seed}, "block1->block2": {"mean": 0.0, "max": 1}}
    return {
        "arm": {"method": method, "value": value, "seed": seed}, "status": "completed", "reason": None,
        "test_accuracy": 0.70 + 0.01 * seed, "blocks": [{"updates_per_s": 0, "distinct_samples_per_s": 0}, last],
        "staleness": edges, "commit": "c0ffee", "machine": {"cores": 2, "processor": "P"},
    } | changes  # fmt: skip


def all_lines():
    return [line_of(**arm.facts) for arm in arms(FULL)]


def test_each_method_is_run_with_each_of_its_settings_and_every_seed():
    planned = arms(FULL)
    assert len(planned) == len({arm.key for arm in planned}) == 48
    values = {
        method: {a.facts["value"] for a in planned if a.facts["method"] == method} for method in (DGL, CDNI, BACKPROP)
    }
    assert values == {DGL: {0, 1, 2, 4, 8, 16}, CDNI: {0, 0.5, 1, 2, 4}, BACKPROP: {0, 0.5, 1, 2, 4}}
    assert [arm.facts["seed"] for arm in planned] == [0] * 16 + [1] * 16 + [2] * 16
    assert len(arms(SHORT)) == 8


def test_a_setting_is_a_bound_under_replay_and_a_delay_under_a_pipeline():
    for arm in arms(FULL):
        config, value = arm.config, arm.facts["value"]
        assert config.seed == arm.facts["seed"] and config.optimizer.options["momentum"] == 0.9
        if arm.facts["method"] == DGL:
            assert (config.schedule.name, config.staleness.max) == ("replay", value)
            assert config.buffers.capacity > value, "the bound decides, not the capacity"
        else:
            assert (config.schedule.name, config.schedule.delay_per_hop) == ("pipeline", value)
            assert config.staleness.max is None


def test_a_row_is_over_the_seeds():
    row = next(row for row in rows(all_lines(), FULL) if (row.method, row.value) == (CDNI, 0.5))
    assert row.accuracy.mean == pytest.approx(71.0) and row.accuracy.half == pytest.approx(4.302653 / 3**0.5)
    assert (row.samples_per_s, row.updates_per_s) == (1501.0, 11.0)
    assert row.staleness == (1.0, 2)
    assert (row.setting, row.failures) == ("s = 0.5", ())


def test_a_failed_run_is_told_and_does_not_count():
    lines = all_lines()
    lines[0] |= {"status": "failed", "reason": "it broke"}
    row = rows(lines, FULL)[0]
    assert (row.setting, row.accuracy.count, row.failures) == ("S = 0", 2, ("seed 0: it broke",))
    assert "seed 0: it broke" in report(lines, FULL)


def test_the_table_has_all_settings_and_leaves_empty_what_was_not_run():
    table = [line for line in report([], FULL).splitlines() if line.startswith("| ")]
    assert len(table) == 1 + 16
    assert table[1].split("|")[3:-1] == ["  "] * (len(HEADER) - 2)
    assert "| cdni | s = 4 | 71.0 ± 2.5 | 5,001 | 11.0 | 1.0 (2) |" in report(all_lines(), FULL)


def test_the_figure_has_a_point_for_every_setting_that_was_run(tmp_path):
    found = points(all_lines(), FULL)
    assert [setting for _, _, setting in found[DGL]] == ["S = 0", "S = 1", "S = 2", "S = 4", "S = 8", "S = 16"]
    assert found[BACKPROP][2] == (2001.0, pytest.approx(71.0), "s = 1")
    assert points([], FULL) == {DGL: [], CDNI: [], BACKPROP: []}
    pytest.importorskip("matplotlib")
    assert figure(all_lines(), FULL, tmp_path / "a.svg") == "a.svg was drawn"
