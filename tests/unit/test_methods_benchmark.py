import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.data_actor import DataActor
from orchestrator.plan import make_plan
from orchestrator.specs import source_spec
from tests.benchmarks.methods import plan_lines, run_all
from tests.benchmarks.methods_plan import FULL, SHORT, MethodsPlan, method_names
from tests.benchmarks.methods_rates import best_point, next_point, rate_at
from tests.benchmarks.methods_report import report
from tests.benchmarks.methods_results import Results
from tests.benchmarks.methods_runs import perform
from tests.runs import config_of, run

FEW_SAMPLES = {name: replace(own, tuning_samples=128, final_samples=160) for name, own in SHORT.networks.items()}
SMALL = replace(SHORT, epochs=1, networks=FEW_SAMPLES, validation_samples=64, seeds=(0, 1, 2))
FEW = ["backprop", "dgl", "shallow"]


@pytest.fixture(scope="module")
def plan():
    return MethodsPlan(SMALL, FEW)


@pytest.fixture(scope="module")
def full_plan():
    return MethodsPlan(FULL)


def line_of(job, **facts):
    found = {"phase": job.phase, "network": job.network, "method": job.method, "seed": job.seed}
    found |= {"rates": job.rates, "config_sha256": job.config_hash, "status": "completed", "reason": None}
    return found | {"commit": "abc", "machine": {"cores": 2, "processor": "P"}} | facts


def imagined(job, best=0.0158):
    """A run whose validation accuracy is highest at one rate and whose test accuracy at another."""
    distance = abs(job.rates["optimizer.lr"] - best)
    if job.phase == "tuning":
        return line_of(job, validation_accuracy=0.9 - distance)
    return line_of(job, test_accuracy=0.5 + job.rates["optimizer.lr"])


def carry_out(plan, lines, do=imagined, most=1000):
    done = []
    while len(done) < most and (job := plan.next_job(lines, ())) is not None:
        done.append(job)
        lines[job.key] = do(job)
    return done


# ---------------------------------------------------------------------- rates


def search(score, runs, num_rates=1):
    tried = {}
    for _ in range(runs):
        point = next_point(tried, num_rates)
        tried[point] = score(point)
    return tried


def test_the_search_starts_at_the_configs_own_rate_and_follows_the_better_side():
    assert list(search(lambda p: -abs(p[0] + 3), 4)) == [(0,), (-1,), (-2,), (-3,)]
    assert list(search(lambda p: -abs(p[0] - 3), 4)) == [(0,), (-1,), (1,), (2,)]
    assert list(search(lambda p: -abs(p[0]), 5)) == [(0,), (-1,), (1,), (-0.5,), (0.5,)]


def test_two_rates_are_varied_by_turns():
    tried = search(lambda p: -abs(p[0]) - abs(p[1] - 1), 4, num_rates=2)
    assert list(tried) == [(0, 0), (-1, 0), (0, -1), (1, 0)]
    assert best_point(search(lambda p: -abs(p[0]) - abs(p[1] - 1), 6, num_rates=2)) == (0, 1)


def test_where_every_run_failed_the_rate_goes_down():
    assert list(search(lambda p: None if p[0] > -3 else 0.4, 4)) == [(0,), (-1,), (-2,), (-3,)]
    assert best_point({(0,): None, (-1,): None}) is None


def test_a_failed_run_never_wins_and_of_equals_the_last_one_does():
    assert best_point({(0,): None, (-1,): 0.1}) == (-1,)
    assert best_point({(0,): 0.5, (-1,): 0.5, (1,): 0.4}) == (-1,)


@given(st.lists(st.none() | st.floats(0, 1), min_size=8, max_size=8), st.integers(1, 2))
def test_no_rate_is_ever_tried_twice(scores, num_rates):
    left = list(scores)
    assert len(search(lambda point: left.pop(), 8, num_rates)) == 8


def test_two_steps_are_a_decade():
    assert [rate_at(0.05, steps) for steps in (-2, -1, 0, 0.5, 2)] == [0.005, 0.0158, 0.05, 0.0889, 0.5]


# ---------------------------------------------------------------------- plan


def test_every_method_is_planned_on_both_networks_and_none_is_refused(full_plan):
    for units in (full_plan.units, MethodsPlan(SHORT).units):
        assert {unit.method for unit in units} == set(method_names()) and len(units) == 2 * len(method_names())
        assert [unit.refused for unit in units if unit.refused] == []


def test_every_method_gets_the_same_number_of_tuning_runs_and_every_seed(plan):
    done = carry_out(plan, {})
    for unit in plan.units:
        own = [job for job in done if (job.network, job.method) == (unit.network, unit.method)]
        assert len({job.key for job in own if job.phase == "tuning"}) == SMALL.tuning_runs
        assert [job.seed for job in own if job.phase == "final"] == [0, 1, 2]
    assert len(done) == len(plan.units) * (SMALL.tuning_runs + 3)


def test_the_rate_of_the_final_runs_is_the_best_on_validation_data(plan):
    done = carry_out(plan, {})
    tried = {job.rates["optimizer.lr"] for job in done if job.phase == "tuning"}
    assert tried == {0.05, 0.0158, 0.005}
    assert {job.rates["optimizer.lr"] for job in done if job.phase == "final"} == {0.0158}


def test_a_method_with_a_synthesizer_tunes_both_rates_with_as_many_runs():
    plan = MethodsPlan(SMALL, ["cdni"], ["mlp"])
    done = carry_out(plan, {})
    tuning = [tuple(job.rates.values()) for job in done if job.phase == "tuning"]
    assert len(tuning) == SMALL.tuning_runs
    assert {synthesizer for _, synthesizer in tuning} >= {0.001, 0.000316}
    configs = [job.config.optimizer for job in done if job.phase == "tuning"]
    assert [(c.lr, c.synthesizer["lr"]) for c in configs] == tuning


def test_tuning_sees_validation_data_only_and_final_runs_test_data_only(plan):
    done = carry_out(plan, {})
    seen = {(job.phase, tuple(job.config.evaluation.splits), job.config.data.validation) for job in done}
    assert seen == {("tuning", ("validation",), 64), ("final", ("test",), 0)}
    assert {job.config.evaluation.every_epochs for job in done} == {0}
    assert {job.seed for job in done if job.phase == "tuning"}.isdisjoint(SMALL.seeds)


def test_all_methods_train_equally_long_on_equally_many_samples(full_plan):
    done = carry_out(full_plan, {}, most=len(full_plan.units) * (FULL.tuning_runs + 1))
    assert len({(job.network, job.method) for job in done if job.phase == "final"}) == len(full_plan.units)
    expected = {("tuning", "cnn"): 6200, ("final", "cnn"): 8192, ("tuning", "mlp"): 9400, ("final", "mlp"): 16000}
    for (phase, network), samples in expected.items():
        own = [job.config for job in done if (job.phase, job.network) == (phase, network)]
        assert {(c.training.epochs, c.data.limit, c.data.batch_size) for c in own} == {(5, samples, 64)}
    assert {job.config.network.blocks for job in done if job.method != "chunked_local"} == {4}
    assert {job.config.network.blocks for job in done if job.method == "chunked_local"} == {2}


def test_references_come_first_and_seed_0_of_all_before_the_other_seeds(plan):
    done = carry_out(plan, {})
    assert list(dict.fromkeys(job.method for job in done)) == ["backprop", "shallow", "dgl"]
    assert method_names()[:3] == ["backprop", "shallow", "dgl"] and method_names()[3] == "overlapping_local"
    finals = [(job.seed, job.method, job.network) for job in done if job.phase == "final"]
    assert [seed for seed, _, _ in finals] == [0] * 6 + [1] * 6 + [2] * 6


def test_a_method_whose_tuning_run_is_under_way_waits_and_the_next_one_starts(plan):
    first = plan.next_job({}, ())
    second = plan.next_job({}, (first,))
    assert (first.method, first.network) == ("backprop", "cnn")
    assert (second.method, second.network) == ("backprop", "mlp")


def test_a_method_that_never_worked_while_tuning_has_no_final_run_and_holds_up_no_other(plan):
    def fails(job):
        failed = line_of(job, status="failed", reason="broken")
        return failed if job.method == "dgl" else imagined(job)

    lines = {}
    done = carry_out(plan, lines, fails)
    assert {job.phase for job in done if job.method == "dgl"} == {"tuning"}
    assert len([job for job in done if job.phase == "final"]) == 2 * 2 * 3
    assert "all 3 tuning runs failed: broken" in report(plan, lines, {})


# ---------------------------------------------------------------------- file of results


def test_a_tuning_line_with_a_test_accuracy_is_refused(plan, tmp_path):
    results = Results(tmp_path / "r.jsonl")
    job = plan.next_job({}, ())
    with pytest.raises(ValueError, match="test data"):
        results.append(line_of(job, test_accuracy=0.9))
    assert results.lines == {} and not results.path.exists()


def test_a_stopped_benchmark_goes_on_where_it_was_and_repeats_nothing(plan, tmp_path):
    done, path = [], tmp_path / "r.jsonl"

    def do(job):
        if len(done) == 10:
            raise KeyboardInterrupt
        done.append(job)
        return imagined(job)

    with ThreadPoolExecutor(2) as pool, pytest.raises(KeyboardInterrupt):
        run_all(plan.next_job, Results(path), pool, do, workers=1)
    assert len(path.read_text().splitlines()) == 10
    done.append(None)  # past the eleventh
    with ThreadPoolExecutor(2) as pool:
        run_all(MethodsPlan(SMALL, FEW).next_job, Results(path), pool, do, workers=2)
    keys = [(line["phase"], line["config_sha256"]) for line in map(json.loads, path.read_text().splitlines())]
    assert len(keys) == len(set(keys)) == 6 * (SMALL.tuning_runs + 3)
    assert plan.next_job(Results(path).lines, ()) is None


def test_a_stopped_run_is_not_written_down(plan, tmp_path):
    results = Results(tmp_path / "r.jsonl")
    with ThreadPoolExecutor(1) as pool:
        run_all(plan.next_job, results, pool, lambda job: None, workers=1, minutes=0.001)
    assert results.lines == {}


def test_a_changed_method_is_run_again_and_its_old_lines_leave_the_table(tmp_path):
    folder = tmp_path / "methods"
    folder.mkdir()
    text = "rule: {name: local}\nobjective: {name: cross_entropy}\n"
    (folder / "backprop.yaml").write_text(text)
    lines = {}
    carry_out(MethodsPlan(SMALL, folder=folder), lines)
    (folder / "backprop.yaml").write_text("# a comment changes nothing\n" + text)
    assert MethodsPlan(SMALL, folder=folder).next_job(lines, ()) is None
    (folder / "backprop.yaml").write_text(text + "optimizer: {nesterov: true}\n")
    changed = MethodsPlan(SMALL, folder=folder)
    assert changed.next_job(lines, ()) is not None and changed.current(lines) == []


def test_runs_that_raised_are_repeated_when_asked_and_those_that_diverged_are_not(plan, tmp_path):
    results = Results(tmp_path / "r.jsonl")
    job = plan.next_job({}, ())
    results.append(line_of(job, status="failed", reason="broken"))
    assert plan.next_job(results.lines, ()) != job
    assert plan.next_job(Results(results.path, forget_failed=True).lines, ()) == job
    results.append(line_of(job, status="diverged", reason="the loss is no number"))
    assert plan.next_job(Results(results.path, forget_failed=True).lines, ()) != job


def test_the_plan_says_what_is_left(plan):
    lines = {}
    carry_out(plan, lines, most=4)
    results = Results.__new__(Results)
    results._lines = lines
    said = list(plan_lines(plan, results, 2))
    assert said[0].startswith("cnn backprop: 3 of 3 tuning, 1 of 3 final")
    assert said[1].startswith("mlp backprop: 0 of 3 tuning, 0 of 3 final")


def test_only_methods_that_miss_their_gap_train_longer_and_what_they_are_measured_against(plan):
    lines = {}
    carry_out(plan, lines)
    accuracy = {"backprop": 0.9, "dgl": 0.8, "shallow": 0.1}
    lines = {key: {**line, **({"test_accuracy": accuracy[line["method"]]} if key[0] == "final" else {})}
             for key, line in lines.items()}  # fmt: skip
    longer = plan.longer_jobs(lines)
    assert [(job.seed, job.method, job.network) for job in longer] == [
        (seed, method, "cnn") for seed in SMALL.seeds for method in ("backprop", "dgl")
    ]
    (final,) = (line for line in lines.values() if line["phase"] == "final" and line["network"] == "cnn"
                and line["method"] == "dgl" and line["seed"] == 0)  # fmt: skip
    assert longer[1].rates == final["rates"] and longer[1].config.training.epochs == 3 * SMALL.epochs
    met = {key: {**line, **({"test_accuracy": 0.9} if key[0] == "final" else {})} for key, line in lines.items()}
    assert plan.longer_jobs(met) == []


# ---------------------------------------------------------------------- runs


def test_a_tuning_run_and_a_final_run_each_tell_of_their_own_split_only(plan):
    unit = next(unit for unit in plan.units if (unit.network, unit.method) == ("mlp", "dgl"))
    tuning = plan.next_tuning(unit, {})
    told = perform(tuning, "abc")
    assert 0 <= told["validation_accuracy"] <= 1 and "test_accuracy" not in told and told["samples"] == 128
    final = final_job(plan, unit)
    told = perform(final, "abc")
    assert 0 <= told["test_accuracy"] <= 1 and "validation_accuracy" not in told
    assert told["status"] == "completed" and told["commit"] == "abc" and told["samples"] == 160
    edges = told["bytes_per_edge_and_sample"]
    assert list(edges) == ["source->block0", "block0->block1", "block1->block2", "block2->block3"]
    assert edges["source->block0"] == 64 * 4 + 8
    assert 128 * 4 + 8 <= edges["block0->block1"] <= 128 * 4 + 8 + 40  # evaluation batches carry votes as well


def final_job(plan, unit):
    lines = {}
    while (job := plan.next_tuning(unit, lines)) is not None:
        lines[job.key] = imagined(job)
    return plan.final(unit, 0, lines)


def test_a_run_that_raises_or_diverges_is_a_line_with_the_reason_and_without_an_accuracy(plan):
    unit = next(unit for unit in plan.units if (unit.network, unit.method) == ("mlp", "dgl"))
    job = plan.next_tuning(unit, {})
    optimizer = job.config.optimizer.model_copy(update={"lr": 1e30})
    diverged = perform(replace(job, config=job.config.model_copy(update={"optimizer": optimizer})), "abc")
    assert diverged["status"] == "diverged" and "block0" in diverged["reason"]
    data = job.config.data.model_copy(update={"validation": 5000.0})
    failed = perform(replace(job, config=job.config.model_copy(update={"data": data})), "abc")
    assert failed["status"] == "failed" and failed["reason"].startswith("data.validation: got 5000")
    for told in (diverged, failed):
        assert "validation_accuracy" not in told and "test_accuracy" not in told


@pytest.mark.parametrize("splits", [["test", "validation"], ["validation"], ["test"], []])
def test_only_the_splits_that_evaluation_names_are_ever_read(tmp_path, splits):
    chosen = {"data": {"validation": 32}, "evaluation": {"splits": splits}}
    config = config_of(tmp_path / "plan", **chosen)
    source = DataActor(source_spec(config, make_plan(config), "run"))
    assert list(source.source.splits) == splits
    summary = run(tmp_path / "run", **chosen)
    assert (summary.test_accuracy is not None) == ("test" in splits)
    assert (summary.validation_accuracy is not None) == ("validation" in splits)
