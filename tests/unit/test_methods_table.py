import pytest

from tests.benchmarks.methods_plan import FULL, SHORT, MethodsPlan
from tests.benchmarks.methods_report import END, START, read_causes, report, write_between_markers
from tests.benchmarks.methods_results import FOLDER, Results
from tests.benchmarks.methods_table import markdown, rows
from tests.benchmarks.methods_targets import gain_verdict, gap_verdict, interval
from tests.conftest import ROOT


def finals(method, network="cnn", **by_seed):
    return [
        {"phase": "final", "network": network, "method": method, "seed": int(seed[1:]), "test_accuracy": accuracy,
         "rates": {"optimizer.lr": 0.05}, "status": "completed", "reason": None,
         "bytes_per_edge_and_sample": {
             "source->block0": 1.0, "block0->block1": 1000.0, "block1->block2": 3000.0, "block1->block0:feedback3": 500,
             "source->block2:raw": 200.0}}
        for seed, accuracy in by_seed.items()
    ]  # fmt: skip


def cells(table, method):
    return next(line for line in table.splitlines() if f"`{method}`" in line).strip("| ").split(" | ")


def test_the_interval_is_students_over_the_seeds():
    found = interval([90.0, 91.0, 92.0])
    assert (found.mean, found.count) == (91.0, 3)
    assert found.half == pytest.approx(4.302653 / 3**0.5)
    assert interval([90.0]).half is None and interval([]) is None


def test_gaps_and_gains_are_paired_by_seed():
    lines = finals("backprop", s0=0.90, s1=0.80, s2=0.70) + finals("dgl", s0=0.89, s1=0.79, s2=0.69)
    lines += finals("shallow", s0=0.50, s2=0.40)
    reference, dgl = rows(lines, "cnn", ["backprop", "dgl"])
    assert dgl.accuracy.mean == pytest.approx(79) and dgl.accuracy.half == pytest.approx(4.302653 * 10 / 3**0.5)
    assert dgl.gap.mean == pytest.approx(1) and dgl.gap.half == pytest.approx(0, abs=1e-9)
    assert dgl.gain.mean == pytest.approx(34) and dgl.gain.count == 2
    assert reference.gap is None and reference.gain.mean == pytest.approx(35)


def test_other_networks_and_tuning_runs_do_not_count():
    lines = finals("dgl", s0=0.9) + finals("dgl", network="mlp", s0=0.1)
    lines += [{**finals("dgl", s1=0.2)[0], "phase": "tuning"}]
    (row,) = rows(lines, "cnn", ["dgl"])
    assert row.accuracy.mean == pytest.approx(90) and row.accuracy.count == 1


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([0.4, 0.5, 0.6], "met"), ([-1.0, 0.0, 1.0], "met"), ([0.5, 0.7, 0.9], "met within its interval"),
     ([0.69, 0.70, 0.71], "missed"), ([0.9], "one seed, not judged"), ([0.1], "met"), ([], "missing")],
)  # fmt: skip
def test_a_gap_is_met_unless_its_interval_lies_above_the_target(values, verdict):
    assert gap_verdict(interval(values), 0.5) == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([1.0, 1.1, 1.2], "better"), ([0.1, 1.0, 2.0], "not shown"), ([-0.1, 0.0, 0.1], "not better"),
     ([3.0], "one seed, not judged"), ([-3.0], "not better"), ([], "missing")],
)  # fmt: skip
def test_a_gain_is_shown_only_if_its_whole_interval_lies_above_zero(values, verdict):
    assert gain_verdict(interval(values)) == verdict


def test_a_miss_is_printed_with_its_cause_or_with_the_lack_of_one():
    lines = finals("backprop", s0=0.90, s1=0.90, s2=0.91) + finals("dgl", s0=0.88, s1=0.88, s2=0.89)
    lines += finals("shallow", s0=0.80, s1=0.80, s2=0.81)
    found = rows(lines, "cnn", ["backprop", "dgl"])
    unknown, known = (cells(markdown(found, causes), "dgl") for causes in ({}, {"cnn": {"dgl": "too short"}}))
    assert unknown[2].startswith("+2.00 ± 0.00") and unknown[3] == "≤ 0.5 **missed**"
    assert unknown[4] == "+8.00 ± 0.00 better" and unknown[-1] == "cause not found yet"
    assert known[-1] == "too short"
    assert cells(markdown(found, {"cnn": {"backprop": "x"}}), "backprop")[-1] != "x"


def test_a_miss_also_says_what_more_epochs_have_shown_and_a_gain_below_the_spread_of_the_seeds_says_so():
    lines = finals("backprop", s0=0.90, s1=0.90, s2=0.91) + finals("dgl", s0=0.88, s1=0.88, s2=0.89)
    lines += [{**line, "phase": "longer"} for line in finals("backprop", s0=0.95) + finals("dgl", s0=0.94)]
    lines += finals("shallow", s0=0.80, s1=0.80, s2=0.81) + finals("kolen_pollack", s0=0.81, s1=0.80, s2=0.84)
    table = markdown(rows(lines, "cnn", ["backprop", "dgl", "kolen_pollack"]), {})
    assert cells(table, "dgl")[-1] == "cause not found yet; gap +1.00 after more epochs"
    assert cells(table, "kolen_pollack")[-1] == "the seeds differ by more than the gain"


def test_overlapping_updates_are_held_against_decoupled_greedy_learning_too():
    lines = finals("backprop", s0=0.90, s1=0.90, s2=0.90) + finals("dgl", s0=0.90, s1=0.90, s2=0.90)
    lines += finals("overlapping_local", s0=0.898, s1=0.898, s2=0.898) + finals("shallow", s0=0.1, s1=0.1, s2=0.1)
    target = cells(markdown(rows(lines, "cnn", ["overlapping_local"]), {}), "overlapping_local")[3]
    assert target == "≤ 0.5 met, not worse than dgl (+0.20 ± 0.00) **missed**"


def test_a_failed_seed_is_named_and_left_out_of_the_mean():
    lines = finals("dgl", s0=0.9, s1=0.8)
    failed = {**finals("dgl", s2=0.0)[0], "status": "diverged", "reason": "the loss is no number"}
    del failed["test_accuracy"]
    shown = cells(markdown(rows([*lines, failed], "cnn", ["dgl"]), {}), "dgl")
    assert shown[1].startswith("85.00 ±") and shown[1].endswith("(2 seeds)")
    assert "seed 2: the loss is no number" in shown[-1]


def test_traffic_is_told_by_kind_of_edge_and_the_pace_is_the_median():
    timed = [{**finals("dgl", s0=0.0)[0], "phase": "throughput", "samples_per_s": pace} for pace in (900, 100, 700)]
    shown = cells(markdown(rows([*finals("dgl", s0=0.9), *timed], "cnn", ["dgl"]), {}), "dgl")
    assert shown[6:8] == ["up 2 x 2, down 1 x 0.5, raw 1 x 0.2", "700 (median of 3)"]
    shown = cells(markdown(rows([*finals("dgl", s0=0.9), timed[0]], "cnn", ["dgl"]), {}), "dgl")
    assert shown[7] == "900"


def tuned(method, *rates):
    return [
        {**finals(method, s9=None)[0], "phase": "tuning", "rates": {"optimizer.lr": a, "optimizer.synthesizer.lr": b}}
        for a, b in rates
    ]


@pytest.mark.parametrize(
    ("tried", "shown"),
    [([], "0.05 / 0.01"), ([(0.05, 0.01)], "0.05↑↓ / 0.01↑↓"), ([(0.005, 0.001), (0.5, 0.1)], "0.05 / 0.01"),
     ([(0.005, 0.1)], "0.05↑ / 0.01↓"), ([(0.5, 0.1), (0.005, 0.1)], "0.05 / 0.01↓")],
)  # fmt: skip
def test_a_rate_at_the_edge_of_what_was_tried_is_marked(tried, shown):
    chosen = {"optimizer.lr": 0.05, "optimizer.synthesizer.lr": 0.01}
    lines = [{**line, "rates": chosen} for line in finals("cdni", s0=0.8)]
    lines += tuned("cdni", *tried, *([(0.05, 0.01)] if tried else []))
    assert cells(markdown(rows(lines, "cnn", ["cdni"]), {}), "cdni")[5] == shown


def test_a_gain_over_a_baseline_whose_own_search_ended_at_its_edge_says_so():
    lines = finals("shallow", s0=0.80, s1=0.80, s2=0.81) + finals("drtp", s0=0.88, s1=0.88, s2=0.89)
    lines = [{**line, "network": "mlp", "rates": {"optimizer.lr": 0.5}} for line in lines]
    assert cells(markdown(rows(lines, "mlp", ["drtp"]), {}), "drtp")[4] == "+8.00 ± 0.00 better"
    tuning = [{**lines[0], "phase": "tuning", "rates": {"optimizer.lr": rate}} for rate in (0.158, 0.5)]
    assert cells(markdown(rows(lines + tuning, "mlp", ["drtp"]), {}), "drtp")[4].endswith("better (shallow's rate ↑)")


def test_a_refused_config_is_named_in_the_table(tmp_path):
    (tmp_path / "backprop.yaml").write_text("rule: {name: backprop, reach: 0}\n")
    assert "refused: rule.reach" in report(MethodsPlan(SHORT, folder=tmp_path), {}, {})


def test_the_readme_changes_between_the_markers_only(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    write_between_markers(file, "new")
    write_between_markers(file, "newer")
    assert file.read_text() == f"before\n{START}\nnewer\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["", START, f"{END}{START}", f"{START}{START}{END}"])
def test_a_readme_without_its_markers_is_left_alone(tmp_path, text):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(ValueError, match="each once"):
        write_between_markers(file, "new")
    assert file.read_text() == text


def test_the_readme_holds_the_table_of_the_committed_results():
    """Else: `python tests/benchmarks/methods.py --write-readme`."""
    shown = (ROOT / "README.md").read_text().split(START)[1].split(END)[0]
    expected = report(MethodsPlan(FULL, [], []), Results(FOLDER / "methods.jsonl").lines, read_causes())
    assert shown.strip() == expected.strip()
