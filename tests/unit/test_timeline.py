"""What actors keep for the timeline, how their clocks are aligned, and the file that comes of it."""

import json
from collections import defaultdict
from itertools import pairwise

import pytest

from actors.times import Times
from actors.trace import MOST, Trace, sampled_batches
from orchestrator.timeline import Clocks, timeline
from tests.runs import run


class Clock:
    """A clock that a test moves."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("num_batches", [1, 5, 26, 27, 40, 46, 10_000])
def test_every_run_has_a_steady_stretch_and_its_last_batches_sampled(num_batches):
    windows = sampled_batches(num_batches)
    chosen = {batch_id for window in windows for batch_id in window}
    assert chosen <= set(range(num_batches))
    assert len(chosen) == min(num_batches, 26), "twenty-one batches, and the last five"
    assert set(range(max(0, num_batches - 5), num_batches)) <= chosen
    assert num_batches < 46 or set(range(20, 41)) <= chosen


def test_every_phase_of_a_sequential_run_has_a_stretch_sampled():
    chosen = {batch_id for window in sampled_batches(300, 100) for batch_id in window}
    assert chosen == {*range(20, 41), *range(120, 141), *range(220, 241), *range(295, 300)}


def test_spans_of_sampled_batches_are_kept_with_their_work_and_no_others():
    clock = Clock()
    times = Times(clock, Trace([range(5, 6)]))
    times.start()
    for batch_id in (4, 5, 6):
        times.at(batch_id)
        with times.within("compute", "forward"):
            clock.now += 2.0
            with times.within("transfer"):
                clock.now += 1.0
            clock.now += 3.0
        clock.now += 10.0
    times.stop()
    assert times.trace.spans == [
        ("compute", "forward", 5, 16.0, 18.0),
        ("transfer", "", 5, 18.0, 19.0),
        ("compute", "forward", 5, 19.0, 22.0),
    ], "time in `other` is no span"
    assert times.seconds()["compute"] == 15.0, "the shares count every batch"


def test_late_work_on_a_sampled_batch_is_kept_and_carries_that_batch():
    trace = Trace([range(5, 6)])
    for step, batch_id in ((5, 3), (9, 5), (9, 9)):
        trace.at(step, batch_id)
        trace.add("compute", "feedback", 0.0, 1.0)
    assert [span[2] for span in trace.spans] == [3, 5]


def test_spans_too_short_to_see_are_not_kept_and_there_is_a_limit_which_counts():
    trace = Trace([range(1)])
    trace.at(0, 0)
    trace.add("transfer", "", 1.0, 1.0 + 1e-5)
    assert trace.spans == []
    for _ in range(MOST + 3):
        trace.add("transfer", "", 1.0, 2.0)
    assert (len(trace.spans), trace.num_left_out) == (MOST, 3)


def test_shares_are_the_same_with_and_without_a_trace():
    found = []
    for trace in (None, Trace([range(10)])):
        clock = Clock()
        times = Times(clock, trace)
        times.start()
        for batch_id in range(3):
            times.at(batch_id)
            with times.within("compute", "forward"):
                clock.now += 1.5
            with times.within("wait_input"):
                clock.now += batch_id
        times.stop()
        found.append(times.seconds())
    assert found[0] == found[1]


# ---------------------------------------------------------------- clocks


def report(name, clock_s, wall_s=0.0, spans=(), node="here"):
    facts = {"name": name, "node": node, "clock": {"now_s": clock_s, "wall_s": wall_s}}
    return facts | {"spans": list(spans), "spans_left_out": 0}


def test_without_reports_the_wall_clocks_align_the_actors():
    clocks = Clocks(clock=Clock(100.0), wall=Clock(5000.0))
    offset = clocks.offset(report("block0", clock_s=7.0, wall_s=5010.0))
    assert offset.seconds == 103.0, "the actor's 7 is the wall's 5010, which is the orchestrator's 110"
    assert offset.error_s is None


def test_a_wrong_wall_clock_is_corrected_by_the_round_trips_of_reports():
    """The actor's clock is 40 s behind the orchestrator's; its wall clock is an hour wrong."""
    clocks = Clocks(clock=Clock(100.0), wall=Clock(5000.0))
    for asked, took_s in ((200.0, 1.0), (300.0, 0.01), (400.0, 2.0)):
        answered_at = asked + took_s / 2
        clocks.note(asked, asked + took_s, {"block0": report("block0", answered_at - 40.0)})
    offset = clocks.offset(report("block0", clock_s=500.0, wall_s=8600.0))
    assert offset.seconds == pytest.approx(40.0, abs=0.01) and offset.error_s <= 0.01 + 1e-9


def test_a_wall_clock_within_the_bounds_is_believed():
    clocks = Clocks(clock=Clock(100.0), wall=Clock(5000.0))
    clocks.note(200.0, 201.0, {"block0": report("block0", 160.2)})
    offset = clocks.offset(report("block0", clock_s=500.0, wall_s=5440.0 + 0.123))
    assert offset.seconds == pytest.approx(40.123)
    assert offset.error_s == pytest.approx(0.677), "the bounds are 39.8 and 40.8"


def test_a_clock_that_jumps_is_aligned_by_the_newest_report():
    clocks = Clocks(clock=Clock(0.0), wall=Clock(0.0))
    clocks.note(10.0, 10.2, {"block0": report("block0", 3.1)})
    clocks.note(20.0, 20.2, {"block0": report("block0", 93.1)})
    offset = clocks.offset(report("block0", clock_s=100.0, wall_s=0.0))
    assert offset.seconds == pytest.approx(-73.0, abs=0.1 + 1e-9)


def test_spans_of_actors_with_different_clocks_stand_at_the_same_time():
    """Both computed in the orchestrator's second 50 to 51; block1's clock is 1000 s ahead."""
    clocks = Clocks(clock=Clock(0.0), wall=Clock(0.0))
    facts = {
        "block0": report("block0", 60.0, 60.0, [("compute", "forward", 3, 50.0, 51.0)], node="a"),
        "block1": report("block1", 1060.0, 60.0, [("compute", "forward", 3, 1050.0, 1051.0)], node="b"),
    }
    events = [event for event in timeline(facts, clocks)["traceEvents"] if event["ph"] == "X"]
    assert [event["ts"] for event in events] == [0.0, 0.0] and [event["dur"] for event in events] == [1e6, 1e6]
    assert {(event["pid"], event["tid"]) for event in events} == {(0, 0), (1, 1)}


# ---------------------------------------------------------------- the file


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run of 55 batches whose feedback is late, with its timeline."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    summary = run(folder, rule={"name": "backprop"}, schedule={"delay_per_hop": 1}, training={"epochs": 5})
    return summary, json.loads((folder / "timeline.json").read_text())


def spans_of(trace):
    """Return the spans of every thread by its name."""
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in trace["traceEvents"]
        if event["ph"] == "M" and event["name"] == "thread_name"
    }
    found = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            found[names[event["pid"], event["tid"]]].append(event)
    return found


def test_the_file_is_a_chrome_trace_with_a_named_thread_per_actor(written):
    _, trace = written
    assert trace["displayTimeUnit"] == "ms"
    for event in trace["traceEvents"]:
        assert {"ph", "name", "pid", "tid"} <= set(event) and event["ph"] in ("X", "M")
        if event["ph"] == "X":
            assert {"ts", "dur", "cat", "args"} <= set(event) and event["ts"] >= 0 and event["dur"] > 0
            assert isinstance(event["args"]["batch"], int)
    assert list(spans_of(trace)) == ["source", "block0", "block1", "block2"]
    processes = [event for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert len(processes) == 1, "all actors ran on one node"


def test_spans_of_one_thread_do_not_overlap(written):
    for spans in spans_of(written[1]).values():
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in pairwise(spans))


def test_every_sampled_batch_appears_in_every_block_with_all_its_work(written):
    chosen = {*range(20, 41), *range(50, 55)}
    for name, spans in spans_of(written[1]).items():
        if name == "source":
            continue
        for work in ("forward", "update", *(["feedback"] if name != "block2" else [])):
            got = {span["args"]["batch"] for span in spans if span["name"] == work}
            assert chosen <= got, (name, work)
            late = 3 if name == "block0" else 2
            assert got <= chosen | {batch_id - late for batch_id in chosen}, "but for late work in a sampled step"


def test_work_that_depends_on_other_work_stands_after_it(written):
    """A batch goes up block by block and its gradient comes down again."""
    begin, end = {}, {}
    for name, spans in spans_of(written[1]).items():
        for span in spans:
            key = name, span["name"], span["args"]["batch"]
            begin[key], end[key] = span["ts"], span["ts"] + span["dur"]
    for batch_id in range(20, 41):
        way = [("block0", "forward"), ("block1", "forward"), ("block2", "forward")]
        way += [("block1", "feedback"), ("block0", "feedback"), ("block0", "update")]
        for before, after in pairwise(way):
            assert end[(*before, batch_id)] <= begin[(*after, batch_id)]


def test_spans_of_a_run_that_is_sampled_whole_agree_with_its_shares(tmp_path):
    summary = run(tmp_path / "run", training={"epochs": 2})
    threads = spans_of(json.loads((tmp_path / "run" / "timeline.json").read_text()))
    for block in summary.blocks:
        spent = defaultdict(float)
        for span in threads[block["name"]]:
            spent[span["cat"]] += span["dur"]
        shares = block["time_fraction"]
        assert "other" not in spent
        assert spent["evaluate"] / spent["compute"] == pytest.approx(shares["evaluate"] / shares["compute"], rel=0.1)


def test_orders_of_the_last_position_are_shown(written):
    for name, spans in spans_of(written[1]).items():
        names = {span["name"] for span in spans if span["args"]["batch"] == 54}
        assert "evaluate" in names and ("snapshot" in names or name == "source")


@pytest.mark.parametrize(
    "sections",
    [
        {"schedule": {"name": "sequential"}},
        {"rule": {"name": "synthetic_gradients", "synthetic_inputs": True}, "optimizer": {"lr": 0.002}},
        {"network": {"blocks": 1}},
    ],
)
def test_any_kind_of_run_leaves_a_timeline(tmp_path, sections):
    run(tmp_path / "run", **sections)
    threads = spans_of(json.loads((tmp_path / "run" / "timeline.json").read_text()))
    assert all(any(span["name"] == "forward" for span in threads[name]) for name in threads if name != "source")


def test_the_clocks_of_actors_in_one_process_are_found_to_be_one(written):
    other = written[1]["otherData"]
    assert set(other["clock_offset_s"]) == {"source", "block0", "block1", "block2"}
    assert all(abs(offset) < 0.05 for offset in other["clock_offset_s"].values())
    assert all(
        abs(other["clock_offset_s"][name]) <= other["clock_error_s"][name] + 1e-3 for name in other["clock_error_s"]
    )
