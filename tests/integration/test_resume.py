"""A run that was interrupted goes on as if it had not been."""

import json
import shutil

import pytest

from actors.errors import UserError
from actors.fail_points import ProcessKilled
from actors.source_program import SourceProgram
from actors.storage import open_storage
from orchestrator import api
from orchestrator.checkpoints import Checkpoints
from orchestrator.cli import main
from orchestrator.lease import Lease
from tests.counting_rule import BATCH_SIZE, EPOCHS, SAMPLES
from tests.integration.test_recovery import KEEPING, METHODS, MLP, kill, outcome
from tests.runs import Replacing, config_of, run

EVERY = {"checkpoint": {"every_batches": 4, "keep": 9}, "evaluation": {"every_batches": 7}}
PIPELINED = METHODS["pipelined"]
COUNTED = {
    "data": Replacing(factory="tests.counting_rule:numbered", classes=SAMPLES, batch_size=BATCH_SIZE),
    "network": Replacing(name="mlp", widths=[8, 8], blocks=3),
    "rule": Replacing(factory="tests.counting_rule:Counting"),
    "training": {"epochs": EPOCHS},
}  # fmt: skip


def killed(folder, at, batch, **sections):
    """Train until the orchestrator's process dies."""
    with pytest.raises(ProcessKilled):
        run(folder, **sections, faults={"kill": [kill("orchestrator", batch, at)]})


@pytest.fixture(scope="module")
def pipelined(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole") / "run", **PIPELINED, **EVERY)


@pytest.mark.parametrize("at", ["half written", "before rename", "written"])
@pytest.mark.parametrize("batch", [3, 11, 21])
def test_a_driver_that_dies_while_it_commits_is_followed_by_one_that_goes_on(tmp_path, pipelined, at, batch):
    killed(tmp_path / "run", at, batch, **PIPELINED, **EVERY)
    got = run(tmp_path / "run", **PIPELINED, **EVERY)
    assert outcome(got) == outcome(pipelined) and got.status == "completed"
    resumed = [event["position"] for event in got.events if event["event"] == "resumed"]
    before = {3: [], 11: [7], 21: [19]}[batch]
    after = {3: [3], 11: [11], 21: [19]}[batch]  # the last one was drained, so the one before it is gone on from
    assert resumed == (after if at == "written" else before)


@pytest.mark.parametrize("at", ["pruning", "half pruned"])
def test_a_driver_that_dies_while_it_deletes_old_checkpoints_loses_nothing(tmp_path, pipelined, at):
    keep_one = {**EVERY, "checkpoint": {"every_batches": 4, "keep": 1}}
    killed(tmp_path / "run", at, 11, **PIPELINED, **keep_one)
    got = run(tmp_path / "run", **PIPELINED, **keep_one)
    assert outcome(got) == outcome(pipelined) and got.status == "completed"
    assert [event["position"] for event in got.events if event["event"] == "resumed"] == [11]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_exactly(tmp_path, method):
    whole = run(tmp_path / "whole", **METHODS[method], **EVERY)
    killed(tmp_path / "run", "written", 11, **METHODS[method], **EVERY)
    got = run(tmp_path / "run", **METHODS[method], **EVERY)
    assert outcome(got) == outcome(whole)
    assert [event["event"] for event in got.events if event["event"] == "resumed"]


def test_in_the_history_that_led_to_the_weights_every_sample_counts_once_per_epoch(tmp_path):
    settings = {**COUNTED, **KEEPING}
    killed(tmp_path / "run", "written", 7, **settings)
    kills = [kill("block1", 11), kill("block2", 15), kill("source", 19, "snapshot")]
    got = run(tmp_path / "run", **settings, faults={"kill": kills})
    assert got.status == "completed" and sum(block["restarts"] for block in got.blocks) == 2
    checkpoint = Checkpoints(open_storage(str(tmp_path / "run" / "checkpoints"))).newest()[0]
    for index in range(3):
        counts = checkpoint.read(index)["auxiliary"]["rule.counts"]
        assert counts.tolist() == [[1] * SAMPLES] * EPOCHS


def test_the_summary_of_a_run_tells_of_all_its_jobs_and_its_metrics_of_every_evaluation_once(tmp_path):
    folder, every = tmp_path / "run", {**PIPELINED, **KEEPING, "evaluation": {"every_batches": 3}}
    whole = run(tmp_path / "whole", **every)
    kills = [kill("block1", 5), kill("orchestrator", 7, "written")]
    with pytest.raises(ProcessKilled):
        run(folder, **every, faults={"kill": kills})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "event", "ti')  # the driver's last words
    got = run(folder, **every, faults={"kill": [kill("block1", 13)]})
    kinds = [event["event"] for event in got.events if event["event"] != "checkpoint"]
    assert kinds == ["lost", "recovered", "resumed", "lost", "recovered"]
    assert [event["position"] for event in got.events if event["event"] == "checkpoint"][:3] == [3, 6, 9]
    assert [block["restarts"] for block in got.blocks] == [0, 2, 0]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines if line["kind"] == "event"] == [event["event"] for event in got.events]

    def evaluations(path):
        written = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return sorted((e["block"], e["batch"], e["split"], e["loss"]) for e in written if e["kind"] == "evaluation")

    found, expected = evaluations(folder), evaluations(tmp_path / "whole")
    assert set(found) == set(expected)
    restored = [e for e in found if e[1] <= 7]
    assert len(restored) == len(set(restored)), "what the snapshot held was written by the job before"
    assert outcome(got) == outcome(whole)


def stop_at(batch, monkeypatch):
    """Let the source be asked to stop at a batch, once."""
    stops, orders = [], SourceProgram._orders

    def stopping(self, batch_id, is_last):
        if batch_id == batch and not stops:
            stops.append(batch_id)
            self.stop_asked = lambda: True
        return orders(self, batch_id, is_last)

    monkeypatch.setattr(SourceProgram, "_orders", stopping)


def test_a_stopped_run_goes_on_from_before_its_feedback_was_drained(tmp_path, pipelined, monkeypatch):
    stop_at(9, monkeypatch)
    stopped = run(tmp_path / "run", **PIPELINED, **EVERY)
    assert [block["version"] for block in stopped.blocks] == [11, 11, 11]
    got = run(tmp_path / "run", **PIPELINED, **EVERY)
    assert outcome(got) == outcome(pipelined)
    assert [event["position"] for event in got.events if event["event"] == "resumed"] == [9]


def test_more_epochs_go_on_from_the_end(tmp_path):
    run(tmp_path / "run", training={"epochs": 1})
    got = run(tmp_path / "run", training={"epochs": 3})
    assert got.epochs == 3 and [block["version"] for block in got.blocks] == [33] * 3
    assert [event["position"] for event in got.events if event["event"] == "resumed"] == [10]
    whole = run(tmp_path / "whole", training={"epochs": 3})
    assert outcome(got)[0] == outcome(whole)[0]  # at a constant rate, and without feedback


def test_checkpoints_at_an_fsspec_address_are_gone_on_from(tmp_path, pipelined):
    there = {**EVERY, "checkpoint": {"every_batches": 4, "uri": f"memory://{tmp_path.name}"}}
    killed(tmp_path / "run", "written", 11, **PIPELINED, **there)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    got = run(tmp_path / "run", **PIPELINED, **there)
    assert outcome(got) == outcome(pipelined)
    assert api.evaluate(tmp_path / "run")["test"]["accuracy"] == got.test_accuracy


@pytest.mark.parametrize("first", ["in_process", "ray"])
def test_a_run_goes_on_on_another_backend_with_other_placement(tmp_path, pipelined, ray_cluster, first):
    folder, over_ray = tmp_path / "run", {"cluster": ray_cluster, "placement": {"blocks_per_actor": 2}}
    run(folder, **PIPELINED, **EVERY, **(over_ray if first == "ray" else {}))
    for later in [path for path in (folder / "checkpoints").iterdir() if path.name > "batch-000000011"]:
        shutil.rmtree(later)
    (folder / "summary.json").unlink()  # as if the driver had died after batch 11
    got = run(folder, **PIPELINED, **EVERY, **(over_ray if first == "in_process" else {}))
    assert [event["position"] for event in got.events if event["event"] == "resumed"] == [11]
    assert outcome(got) == outcome(pipelined)


def test_a_run_that_is_being_trained_is_not_started_anew(tmp_path):
    folder = tmp_path / "run"
    run(folder, training={"epochs": 1})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert folder / "summary.json" in before
    holder = Lease(folder / "lease.json")
    holder.acquire()
    try:
        with pytest.raises(UserError, match="is being trained by process"):
            api.train(config_of(folder, seed=8), fresh=True, progress=False)
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert {path for path in before if after.get(path) != before[path]} == {folder / "lease.json"}
        holder.beat()
    finally:
        holder.release()
    assert api.train(config_of(folder, seed=8), fresh=True, progress=False).seed == 8
    assert json.loads((folder / "lease.json").read_text())["epoch"] == holder.epoch + 1


# ---------------------------------------------------------------------- damage


@pytest.fixture
def interrupted(tmp_path):
    """A run that died after the checkpoint at batch 11."""
    killed(tmp_path / "run", "written", 11, **PIPELINED, **EVERY)
    return tmp_path / "run"


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(interrupted, pipelined, capsys, how):
    newest = sorted((interrupted / "checkpoints").iterdir())[-1]
    shard = next(newest.glob("block1.*"))
    {
        "truncated": lambda: shard.write_bytes(shard.read_bytes()[:-9]),
        "flipped": lambda: damage(shard),
        "missing": shard.unlink,
        "no manifest": (newest / "manifest.json").unlink,
    }[how]()
    verify_exits(interrupted, 0)
    said = capsys.readouterr().out
    assert "goes on from the checkpoint at batch 7" in said
    named = f"{newest.name}: has no manifest" if how == "no manifest" else shard.name
    assert named in said and (how == "no manifest" or "batch 11: damaged" in said)
    got = run(interrupted, **PIPELINED, **EVERY)
    assert outcome(got) == outcome(pipelined)
    assert [event["position"] for event in got.events if event["event"] == "resumed"] == [7]
    assert [named in event["reason"] for event in got.events if event["event"] == "checkpoint not used"] == [True]


@pytest.fixture
def drained(tmp_path, monkeypatch):
    """A run that was stopped: checkpoints at batches 3, 7, 9, and at the last one, 10, after its feedback."""
    stop_at(9, monkeypatch)
    run(tmp_path / "run", **PIPELINED, **EVERY)
    return tmp_path / "run"


@pytest.mark.parametrize("how", ["flipped", "no manifest"])
def test_where_only_the_drained_checkpoint_is_left_verify_and_train_refuse_alike(drained, capsys, how):
    *before, last = sorted((drained / "checkpoints").iterdir())
    assert len(before) == 3
    for folder in before:
        (folder / "manifest.json").unlink() if how == "no manifest" else damage(next(folder.glob("block1.*")))
    why = "only the checkpoint at batch 10 verifies, at which training had ended"
    verify_exits(drained, 2)
    assert why in capsys.readouterr().err
    with pytest.raises(UserError, match=rf"{why} \(.*; start anew with --fresh"):
        run(drained, **PIPELINED, **EVERY)
    assert last.is_dir()


def test_where_a_drained_checkpoint_is_damaged_verify_says_the_one_that_train_uses(drained, capsys):
    damage(next((drained / "checkpoints" / "batch-000000010").glob("block1.*")))
    verify_exits(drained, 0)
    said = capsys.readouterr().out
    assert "batch 10: damaged" in said and "a resumed run goes on from the checkpoint at batch 9" in said
    got = run(drained, **PIPELINED, **EVERY)
    assert [event["position"] for event in got.events if event["event"] == "resumed"] == [9]


def test_a_finished_run_is_told_apart_by_verify(tmp_path, capsys):
    run(tmp_path / "run", training={"epochs": 1})
    verify_exits(tmp_path / "run", 0)
    assert "finished, and with more epochs it goes on from the checkpoint at batch 10" in capsys.readouterr().out


def verify_exits(folder, code):
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(folder)])
    assert (ended.value.code or 0) == code


def test_where_no_checkpoint_verifies_nothing_is_trained(interrupted, capsys):
    for shard in interrupted.glob("checkpoints/*/block0.*"):
        damage(shard)
    verify_exits(interrupted, 2)
    assert "no checkpoint verifies" in capsys.readouterr().err
    with pytest.raises(UserError, match="no checkpoint verifies"):
        run(interrupted, **PIPELINED, **EVERY)


def test_resume_goes_on_by_the_run_directory_alone_even_after_it_was_moved(interrupted, pipelined, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(interrupted, moved)
    got = api.resume(moved, progress=False)
    assert got.run_dir == str(moved) and outcome(got)[0] == outcome(pipelined)[0]
    assert api.resume(moved, progress=False).weights_sha256 == got.weights_sha256


# ---------------------------------------------------------------------- other blocks

FOUR = Replacing(name="cnn", channels=[6, 8, 8], pool_after=[2], blocks=4)
TWO = {**FOUR, "blocks": 2}
RECUT = {
    "momentum": {"rule": {"name": "backprop"}},
    "adam": {"rule": {"name": "backprop"}, "optimizer": Replacing(name="adam", lr=0.003)},
    "accumulated": {"rule": {"name": "backprop"}, "training": {"accumulate": 3}},
    "feedback alignment": {"rule": {"name": "feedback_alignment"}},
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (4, 1), (1, 3)])
@pytest.mark.parametrize("method", ["momentum", "adam", "accumulated", "feedback alignment"])
def test_a_run_with_one_loss_at_its_end_goes_on_exactly_with_other_blocks(tmp_path, method, before, after):
    sections = {**RECUT[method], **EVERY}
    whole = run(tmp_path / "whole", **{**sections, "network": {**FOUR, "blocks": before}})
    killed(tmp_path / "run", "written", 11, **{**sections, "network": {**FOUR, "blocks": before}})
    got = run(tmp_path / "run", **{**sections, "network": {**FOUR, "blocks": after}})
    assert [event["position"] for event in got.events if event["event"] == "resumed"] == [11]
    assert len(got.blocks) == after and [block["version"] for block in got.blocks] == [22] * after
    assert got.weights_sha256 == whole.weights_sha256 and got.test_accuracy == whole.test_accuracy
    assert api.evaluate(tmp_path / "run")["test"]["accuracy"] == got.test_accuracy
    assert not [event for event in got.events if event["event"] == "imbalance"]


def test_a_run_that_was_cut_otherwise_and_died_again_goes_on_with_either_cut(tmp_path):
    sections = {"rule": {"name": "backprop"}, **EVERY}
    whole = run(tmp_path / "whole", **sections, network=FOUR)
    killed(tmp_path / "run", "written", 7, **sections, network=FOUR)
    killed(tmp_path / "run", "half written", 15, **sections, network=TWO)
    got = run(tmp_path / "run", **sections, network=FOUR)
    assert got.weights_sha256 == whole.weights_sha256
    assert [event["position"] for event in got.events if event["event"] == "resumed"] == [7, 11]


def test_a_run_that_is_cut_otherwise_names_what_is_damaged(tmp_path):
    sections = {"rule": {"name": "backprop"}, **EVERY}
    killed(tmp_path / "run", "written", 11, **sections, network=FOUR)
    shard = next((tmp_path / "run" / "checkpoints" / "batch-000000011").glob("block1.*"))
    damage(shard)
    got = run(tmp_path / "run", **sections, network=TWO)
    assert [shard.name in event["reason"] for event in got.events if event["event"] == "checkpoint not used"] == [True]
    assert [event["position"] for event in got.events if event["event"] == "resumed"] == [7]


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"rule": {"name": "local"}}, r"rule 'local' has losses or parameters of its own at every block"),
        (METHODS["direct"], r"rule 'direct_feedback_alignment' has feedback matrices of its own at every block, in"),
        ({"rule": {"name": "drtp"}, "network": MLP}, r"rule 'drtp' has feedback matrices of its own at every block"),
        ({"rule": {"name": "backprop", "reach": 2, "losses": "every"}}, "rule 'backprop' has losses at every block"),
        (PIPELINED, r"delay_per_hop 0 nothing is under way"),
        ({"rule": {"name": "backprop"}, "optimizer": {"clip": 1.0}}, "gradients are clipped by block"),
    ],
)
def test_other_blocks_are_refused_where_they_would_train_other_weights(tmp_path, sections, why):
    killed(tmp_path / "run", "written", 11, **sections, **EVERY)
    cut = sections.get("network", {})
    with pytest.raises(UserError, match=rf"was cut into other blocks \(network\.blocks\), and .*{why}"):
        run(tmp_path / "run", **{**sections, "network": type(cut)({**cut, "blocks": 2})}, **EVERY)
