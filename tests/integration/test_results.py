"""What a run leaves behind can be used: evaluate, export, status, metrics, several seeds."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from actors.datasets.batches import EvalBatches
from actors.datasets.loading import load_data
from orchestrator import api
from orchestrator.cli import main
from orchestrator.network_file import assemble
from orchestrator.specs import data_spec
from tests.runs import block_weights, config_of, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    sections = {"data": {"validation": 0.1}, "evaluation": {"every_batches": 5}}
    return folder, run(folder, **sections), config_of(folder, **sections)


def test_evaluate_gives_the_accuracy_of_the_run(trained):
    folder, summary, _ = trained
    result = api.evaluate(folder)
    assert result["test"]["accuracy"] == summary.test_accuracy
    assert result["validation"]["accuracy"] == summary.validation_accuracy
    assert result["test"]["loss"] == pytest.approx(summary.test_loss, rel=1e-5)


def test_the_exported_file_loads_into_a_plain_sequential(trained, tmp_path):
    folder, summary, config = trained
    api.export(folder, tmp_path / "network.safetensors")
    state = load_file(tmp_path / "network.safetensors")
    data = load_data(data_spec(config))
    body = assemble(config, data.input_shape, data.num_classes)
    plain = torch.nn.Sequential(dict_of_layers(body))
    plain.load_state_dict(state, strict=True)
    plain.eval()
    correct = count = 0
    with torch.no_grad():
        for batch in EvalBatches(data.test, 50):
            correct += int((plain(batch.inputs).argmax(1) == batch.labels).sum())
            count += len(batch.labels)
    assert correct / count == summary.test_accuracy


def dict_of_layers(body):
    from collections import OrderedDict

    return OrderedDict(zip(body.names, body.layers, strict=True))


def test_status_shows_every_block(trained, capsys):
    folder, summary, _ = trained
    main_exits(["status", str(folder), "--json"], 0)
    status = json.loads(capsys.readouterr().out)
    assert status["state"] == "completed"
    assert [block["name"] for block in status["blocks"]] == ["block0", "block1", "block2"]
    for block in status["blocks"]:
        assert block["pid"] == os.getpid() and block["version"] == summary.blocks[0]["version"]
        assert block["device"] == "cpu" and block["node"]


def test_metrics_hold_every_evaluation_once_with_its_position(trained):
    folder, summary, _ = trained
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tested = [e for e in entries if e["kind"] == "evaluation" and e["block"] == "block2" and e["split"] == "test"]
    assert [e["batch"] for e in tested] == [4, 9, 14, 19]
    assert tested[-1]["accuracy"] == summary.test_accuracy
    assert any(e["kind"] == "report" for e in entries)


def test_tensorboard_can_read_what_was_written(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[0] / "tensorboard")).Reload()
    assert {"block0/loss", "block2/test_accuracy"} <= set(events.Tags()["scalars"])
    newest = events.Scalars("block2/test_accuracy")[-1]
    assert newest.step == 19 and newest.value == pytest.approx(trained[1].test_accuracy)


def test_time_fractions_sum_to_one(trained):
    for block in trained[1].blocks:
        assert sum(block["time_fraction"].values()) == pytest.approx(1.0)


def test_the_same_command_on_a_finished_run_gives_its_result_again(trained):
    folder, summary, config = trained
    before = (folder / "summary.json").stat().st_mtime_ns
    again = api.train(config, progress=False)
    assert again.weights_sha256 == summary.weights_sha256
    assert (folder / "summary.json").stat().st_mtime_ns == before


def test_a_run_can_start_from_another_runs_weights(trained, tmp_path):
    folder, summary, _ = trained
    file = tmp_path / "network.safetensors"
    api.export(folder, file)
    resting = {"network": {"weights": str(file)}, "optimizer": {"lr": 0.0}, "training": {"epochs": 1}}
    got = run(tmp_path / "resting", **resting)
    assert got.test_accuracy == pytest.approx(summary.test_accuracy, abs=0.1)  # batch norm's statistics still move
    other = run(tmp_path / "fresh", optimizer={"lr": 0.0}, training={"epochs": 1})
    assert block_weights(got) != block_weights(other)


def test_damaged_checkpoints_are_refused(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    shard = next(folder.glob("checkpoints/*/block1.*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(RuntimeError, match=r"block1\.\d+\.safetensors.*damaged"):
        api.evaluate(folder)


def test_where_the_newest_checkpoint_is_damaged_evaluation_says_which_one_it_uses(tmp_path, capsys):
    run(tmp_path / "run", checkpoint={"every_batches": 4, "keep": 2})
    *_, older, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    shard = next(newest.glob("block1.*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    capsys.readouterr()
    assert "test" in api.evaluate(tmp_path / "run")
    said = capsys.readouterr().err
    assert shard.name in said and f"the checkpoint at batch {int(older.name.removeprefix('batch-'))} is used" in said


def test_several_seeds_give_one_run_each_and_a_summary(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(
        "data: {name: generated, shape: [1, 6, 6], classes: 3, size: 64, batch_size: 16}\n"
        "network: {name: mlp, widths: [8], blocks: 2}\n"
        "training: {epochs: 1}\nplacement: {backend: in_process}\n"
    )
    main_exits(["train", str(config), "seed=[1,2,3]", f"run_dir={tmp_path / 'runs'}"], 0)
    facts = json.loads((tmp_path / "runs" / "summary.json").read_text())
    assert facts["seeds"] == [1, 2, 3] and len(facts["test_accuracy"]["values"]) == 3
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"seed-1", "seed-2", "seed-3", "summary.json"}
    assert "standard deviation" in capsys.readouterr().out


def test_methods_lists_every_plugin(capsys):
    main_exits(["methods", "--json"], 0)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["local"]["removes_locks"] == ["update", "backward"] and rows["local"]["feedback"] == "none"
    assert rows["backprop"]["removes_locks"] == [] and rows["backprop"]["feedback"] == "next_block"
    assert rows["cross_entropy"]["kind"] == "objective"
    assert all(row["paper"] and row["summary"] for row in rows.values())


def main_exits(arguments, code):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == code
