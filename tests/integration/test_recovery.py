"""A process dies at a logical point; the run goes on, and under first in, first out no weight is different.

All actors share this process, so every death is exact; tests/integration/test_kills.py does it with real ones.
"""

import functools
import itertools

import pytest

from actors.data_actor import DataActor
from actors.errors import RunError, UserError
from actors.fail_points import ProcessKilled
from actors.replay_program import TOO_OLD
from actors.transport.outbox import Outbox
from orchestrator.progress import TrainingProgress
from orchestrator.run_directory import RunDirectory
from tests.runs import Replacing, block_weights, run

MLP = Replacing(name="mlp", widths=[12, 10, 8], blocks=4)
METHODS = {
    "local": {},
    "lockstep": {"rule": {"name": "backprop"}, "schedule": {"name": "lockstep"}},
    "sequential": {"schedule": {"name": "sequential"}},
    "backprop": {"rule": {"name": "backprop"}},
    "pipelined": {"rule": {"name": "backprop"}, "schedule": {"delay_per_hop": 2}},
    "recompute": {"rule": {"name": "backprop"}, "schedule": {"delay_per_hop": 1, "late": "recompute"}},
    "overlapping": {"rule": {"name": "backprop", "reach": 2, "losses": "every"}, "schedule": {"delay_per_hop": 1}},
    "direct": {"rule": {"name": "direct_feedback_alignment"}, "schedule": {"delay_per_hop": 2}, "network": MLP},
    "synthetic": {
        "rule": {"name": "synthetic_gradients"},
        "schedule": {"delay_per_hop": 2},
        "optimizer": {"lr": 0.002},
    },
    "synthetic inputs": {
        "optimizer": {"lr": 0.002},
        "rule": {"name": "synthetic_gradients", "synthetic_inputs": True},
        "schedule": {"delay_per_hop": 2, "input_delay": 2},
    },
    "accumulated": {"rule": {"name": "backprop"}, "training": {"accumulate": 3}, "schedule": {"delay_per_hop": 1}},
}  # fmt: skip
KEEPING = {"checkpoint": {"every_batches": 4}, "recovery": {"mode": "local"}, "evaluation": {"every_batches": 7}}


EITHER_ORDER = object()


def kill(actor, batch, at="step", lives=1):
    return {"actor": actor, "batch": batch, "at": at, "lives": lives}


@functools.cache
def undisturbed(folder, method):
    return run(folder / f"undisturbed {method}", **METHODS[method])


def outcome(summary):
    return block_weights(summary), summary.test_accuracy, [b["version"] for b in summary.blocks]


def lost(summary):
    return [event["actor"] for event in summary.events if event["event"] == "lost"]


def assert_unchanged(tmp_path_factory, method, kills, expected_losses=None, **settings):
    """Train with processes that die; the same weights, the same evaluations, and every ledger balanced."""
    folder = tmp_path_factory.mktemp("run")
    reference = undisturbed(tmp_path_factory.getbasetemp(), method)
    sections = {**METHODS[method], **KEEPING, **settings, "faults": {"kill": kills}}
    got = run(folder / "run", **sections)
    expected = [k["actor"] for k in kills]
    in_order = expected_losses is not EITHER_ORDER
    assert lost(got) == expected if in_order else sorted(lost(got)) == sorted(expected)
    assert outcome(got) == outcome(reference)
    assert not [event for event in got.events if event["event"] == "imbalance"]
    assert sum(block["restarts"] for block in got.blocks) == sum(k["actor"] != "source" for k in kills)
    assert_bounds_held(got)


def assert_bounds_held(summary):
    """A batch that a block trains on again after a restart is no start: it was fresh when it was first trained on."""
    for edge in summary.edges:
        bound = edge["staleness"]["bound"]
        assert bound is None or edge["staleness"]["max"] <= bound, edge


def batch_of(method, actor):
    """Batch 11; under `sequential` each block has 22 batches of its own."""
    if method != "sequential":
        return 11
    return {"block0": 11, "block1": 33, "block2": 55, "source": 51}[actor]


def cases():
    """Every method loses a block in both modes, and the most intricate ones lose each actor."""
    for method in METHODS:
        yield method, "block1", "local"
        yield method, "block0", "global"
    for method in ("pipelined", "synthetic inputs", "lockstep"):
        yield from ((method, actor, mode) for actor in ("block2", "source") for mode in ("local", "global"))


@pytest.mark.parametrize(("method", "actor", "mode"), cases())
def test_a_lost_actor_changes_no_weight(tmp_path_factory, method, actor, mode):
    at = "snapshot" if actor == "source" else "step"
    assert_unchanged(tmp_path_factory, method, [kill(actor, batch_of(method, actor), at)], recovery={"mode": mode})


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize("actor", ["block0", "block1"])
@pytest.mark.parametrize("method", ["local", "synthetic inputs"])
def test_a_lost_actor_changes_no_weight_under_a_staleness_bound_either(tmp_path_factory, method, actor, mode):
    """What a life has promised its producer, or been promised, is known to the next one."""
    settings = {"staleness": {"max": 0}, "recovery": {"mode": mode}}
    assert_unchanged(tmp_path_factory, method, [kill(actor, 11)], **settings)


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize("method", ["local", "pipelined"])
def test_two_neighbours_that_die_together_change_no_weight(tmp_path_factory, method, mode):
    assert_unchanged(tmp_path_factory, method, [kill("block1", 11), kill("block2", 9)], recovery={"mode": mode},
                     expected_losses=EITHER_ORDER)  # fmt: skip


@pytest.mark.parametrize("mode", ["local", "global"])
def test_a_block_that_dies_during_its_own_recovery_changes_no_weight(tmp_path_factory, mode):
    kills = [kill("block1", 11), kill("block1", None, "restored", lives=2)]
    assert_unchanged(tmp_path_factory, "pipelined", kills, recovery={"mode": mode})


def test_a_block_that_dies_before_the_first_checkpoint_begins_again(tmp_path_factory):
    assert_unchanged(tmp_path_factory, "pipelined", [kill("block1", 2)])


@pytest.mark.parametrize("at", ["snapshot", "half written", "before rename", "written"])
def test_a_block_that_dies_while_its_snapshot_is_written_changes_no_weight(tmp_path_factory, at):
    assert_unchanged(tmp_path_factory, "pipelined", [kill("block1", 11, at)])


def test_a_block_that_dies_at_the_last_batch_changes_no_weight(tmp_path_factory):
    assert_unchanged(tmp_path_factory, "pipelined", [kill("block2", 21)])
    assert_unchanged(tmp_path_factory, "local", [kill("block0", 21)])


def test_the_status_goes_on_while_a_block_is_lost_and_says_which(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.orchestrator.REPORT_EVERY_S", 0.0)
    written, write = [], RunDirectory.write_status
    monkeypatch.setattr(
        RunDirectory, "write_status", lambda self, status: (written.append(status), write(self, status))
    )
    settings = {**KEEPING, "recovery": {"mode": "local", "backoff_s": 0.5}}
    got = run(tmp_path / "run", **settings, faults={"kill": [kill("block1", 11)]})
    assert [event["actor"] for event in got.events if event["event"] == "lost"] == ["block1"]
    meanwhile = [status for status in written if status["reason"]]
    assert meanwhile and meanwhile[0]["reason"].startswith("block1 is lost (its process died")
    assert [block["name"] for block in meanwhile[0]["blocks"]] == ["block0", "block1", "block2"]
    assert got.status == "completed" and written[-1]["reason"] is None


def test_many_deaths_change_no_weight(tmp_path_factory):
    """Each of three blocks dies three or four times, always in another step."""
    kills = [kill(f"block{batch % 3}", batch, lives=batch // 6 + 1) for batch in range(1, 22, 2)]
    assert_unchanged(tmp_path_factory, "synthetic", kills, EITHER_ORDER, recovery={"mode": "local", "max_failures": 20})


# ---------------------------------------------------------------------- when the run must end


def test_a_block_whose_process_dies_in_the_same_step_for_ever_ends_the_run_in_the_end(tmp_path):
    with pytest.raises(RunError, match=r"more than recovery\.max_failures = 3"):
        run(tmp_path / "run", **KEEPING, faults={"kill": [kill("block1", 11, lives=99)]})


def test_without_recovery_a_death_ends_the_run_with_its_reason(tmp_path):
    with pytest.raises(RunError, match="block1 ended the run: its process died"):
        run(tmp_path / "run", faults={"kill": [kill("block1", 11)]})


def test_local_recovery_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"recovery\.mode: got 'local' without periodic checkpoints"):
        run(tmp_path / "run", recovery={"mode": "local"})


# ---------------------------------------------------------------------- snapshots


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("every", [1, 3])
def test_snapshots_change_no_weight(tmp_path_factory, tmp_path, method, every):
    got = run(tmp_path / "run", **METHODS[method], checkpoint={"every_batches": every}, recovery={"mode": "local"})
    assert outcome(got) == outcome(undisturbed(tmp_path_factory.getbasetemp(), method))
    positions = [event["position"] for event in got.events if event["event"] == "checkpoint"]
    assert len(positions) >= 22 // every


@pytest.mark.parametrize("method", ["local", "pipelined", "overlapping", "direct"])
def test_what_is_kept_for_others_stays_below_the_cap_and_the_source_waits_for_checkpoints(
    tmp_path_factory, tmp_path, monkeypatch, method
):
    """The cap holds an evaluation of 32 samples and few of the 22 batches."""
    put, boxes, kept = Outbox.put, {}, []

    def weighed(self, message, wait_s=0.0):
        done = put(self, message, wait_s)
        boxes[self.edge] = self
        actor = self.edge.split("->")[0]
        kept.append(sum(box.kept_bytes for edge, box in boxes.items() if edge.startswith(f"{actor}->")))
        return done

    monkeypatch.setattr(Outbox, "put", weighed)
    cap = 60_000 if method == "direct" else 200_000
    few = {**METHODS[method], "data": {"test_size": 32}}
    keeping = {"checkpoint": {"every_batches": 1000}, "recovery": {"mode": "local", "retention_bytes": cap}}
    got = run(tmp_path / "run", **few, **keeping)
    assert cap / 3 < max(kept) <= cap
    assert block_weights(got) == block_weights(undisturbed(tmp_path_factory.getbasetemp(), method))
    positions = [event["position"] for event in got.events if event["event"] == "checkpoint"]
    assert max(b - a for a, b in itertools.pairwise([-1, *positions])) <= 8 and len(positions) > 2
    told = [event["reason"] for event in got.events if "retention" in event["event"]]
    assert len(told) == 1 and told[0].startswith("the source waits for checkpoints")


def test_a_cap_that_holds_no_evaluation_is_named_once_at_the_start(tmp_path):
    keeping = {"checkpoint": {"every_batches": 4}, "recovery": {"mode": "local", "retention_bytes": 200_000}}
    got = run(tmp_path / "run", **keeping)
    told = [event["reason"] for event in got.events if event["event"] == "small retention"]
    assert len(told) == 1 and "recovery.retention_bytes: 0.2 MB hold less than" in told[0]


@pytest.mark.parametrize("also", ["nobody", "block0"])
def test_a_snapshot_asked_of_a_source_that_repeats_comes_at_a_batch_that_no_block_has(tmp_path, monkeypatch, also):
    """Blocks drop what they have already, with the orders that it carries this time."""
    note, program, died = DataActor._note_position, DataActor.program, []

    def dies_once(self, batch_id, orders):
        if batch_id == 29 and not died:
            died.append(batch_id)
            raise ProcessKilled("source")
        note(self, batch_id, orders)

    def asked(self):
        if self.life.repeats:
            self.order("snapshot", {})
        return program(self)

    monkeypatch.setattr(DataActor, "_note_position", dies_once)
    monkeypatch.setattr(DataActor, "program", asked)
    kills = [kill("block0", 28)] if also == "block0" else []
    keeping = {"checkpoint": {"every_batches": 30}, "recovery": {"mode": "local"}, "evaluation": {"every_epochs": 0}}
    got = run(tmp_path / "run", **keeping, training={"epochs": 6}, faults={"kill": kills})
    assert died and set(lost(got)) == {"source", also} - {"nobody"}
    positions = [event["position"] for event in got.events if event["event"] == "checkpoint"]
    assert [position for position in positions if position not in (29, 59, 65)], f"of {positions}"
    alone = run(tmp_path / "alone", training={"epochs": 6}, evaluation={"every_epochs": 0})
    assert block_weights(got) == block_weights(alone)


# ---------------------------------------------------------------------- taking what comes

UNORDERED = {
    "replay": {"schedule": {"name": "replay"}},
    "replay drops": {
        "schedule": {"name": "replay"},
        "buffers": {"on_full": "drop_oldest", "max_reuse": 3, "capacity": 4},
        "staleness": {"max": 4},
    },
    "as it arrives": {"rule": {"name": "backprop"}, "schedule": {"feedback": "as_it_arrives"}},
    "both": {"rule": {"name": "backprop"}, "schedule": {"name": "replay", "feedback": "as_it_arrives"}},
}  # fmt: skip


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize("actor", ["block0", "block1", "block2", "source"])
@pytest.mark.parametrize("how", UNORDERED)
def test_where_blocks_take_what_comes_a_death_loses_little_and_training_goes_on(
    tmp_path, monkeypatch, how, actor, mode
):
    said = []
    monkeypatch.setattr(TrainingProgress, "say", lambda self, text: said.append(text))
    sections = {**UNORDERED[how], **KEEPING, "recovery": {"mode": mode}, "optimizer": {"lr": 0.01}}
    at = "snapshot" if actor == "source" else "step"
    got = run(tmp_path / "run", **sections, faults={"kill": [kill(actor, 11, at)]})
    assert got.status == "completed" and lost(got) == [actor]
    assert all(block["version"] >= 15 for block in got.blocks)
    assert not [event for event in got.events if event["event"] == "imbalance"]
    total = sum(edge["lost"] for edge in got.edges)
    assert total <= 40
    assert [line.split()[0] for line in said if "messages were lost with" in line] == ([str(total)] if total else [])
    faults = [event for event in got.events if event["event"] == "recovered" and event["actor"] == actor]
    assert [event["messages_lost"] for event in faults] == [total]
    assert len([line for line in said if f"{actor} is back after" in line]) == 1, said
    assert got.test_accuracy is not None
    assert_bounds_held(got)
    too_old = sum(edge["dropped"].get(TOO_OLD, 0) for edge in got.edges)
    assert too_old > 0 or (how, actor, mode) != ("replay drops", "block1", "local"), "what its snapshot held"
