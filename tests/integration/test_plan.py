"""`unlocked plan`: what it measures is there, what it simulates is called so, a mistake is one sentence."""

import json

import pytest
from rich.console import Console

from orchestrator.cli import main
from orchestrator.plan_command import Cluster, devices_of, plan_run
from orchestrator.plan_report import print_report
from orchestrator.profiling import measure
from tests.runs import Replacing, config_of

CONFIG = "configs/digits_cnn.yaml"


def small(folder, **sections):
    return config_of(folder / "run", **sections)


def test_operations_parameters_and_bytes_are_those_of_the_network(tmp_path):
    """128 -> 8 -> 4 units, 16 samples: forward, weights' gradients, and the input's gradient of the second layer."""
    network = {"name": "mlp", "widths": [8], "blocks": 2}
    config = small(tmp_path, network=Replacing(network), rule={"name": "backprop"})
    profile = measure(config, 0.1)
    first, second = profile.blocks
    assert first.flops == 2 * (2 * 16 * 128 * 8)
    assert second.flops == 3 * (2 * 16 * 8 * 4)
    assert first.num_parameters == 128 * 8 + 8 and second.num_parameters == 8 * 4 + 4
    assert second.optimizer_bytes == 4 * second.num_parameters, "one momentum per weight"
    edges = {name: carriage.num_bytes for name, carriage in profile.edges.items()}
    assert edges["source->block0"] == 16 * (128 * 4 + 8), "samples and their labels"
    assert edges["block0->block1"] == 16 * (8 * 4 + 8)
    assert edges["block1->block0:feedback1"] == 16 * 8 * 4
    assert first.works.keys() == {"forward", "learn", "feedback", "update"}
    assert 16 * 8 * 4 <= first.activation_bytes <= 16 * (128 + 4 * 8) * 4


def test_a_plan_says_what_a_run_will_be_like_and_starts_nothing(tmp_path):
    facts = plan_run(small(tmp_path), seconds=0.2)
    json.dumps(facts)
    assert not (tmp_path / "run").exists()
    assert [block["name"] for block in facts["blocks"]] == ["block0", "block1", "block2"]
    assert all(block["step_s"] > 0 and block["flops"] > 0 for block in facts["blocks"])
    core_s = sum(block["cpu_s"] for block in facts["blocks"])
    assert facts["predicted_step_s"] >= 0.99 * core_s, "in one process the blocks take turns"
    assert facts["predicted_samples_per_s"] == pytest.approx(16 / facts["predicted_step_s"])
    assert facts["simulated"] is False and facts["suggestion"] and facts["bottleneck"]
    assert facts["over_1f1b"].keys() == {"4", "8", "16"}
    assert {check["name"] for check in facts["checks"]} == {"config", "buffers", "object store", "memory", "cores"}
    assert facts["edges"][1]["staleness"]["max"] >= 0


def test_simulated_numbers_are_called_simulated(tmp_path):
    timeline = tmp_path / "timeline.json"
    facts = plan_run(small(tmp_path), Cluster((1.0, 0.5, 1.0)), seconds=0.2, timeline=timeline)
    assert facts["simulated"] is True
    steps = [block["step_s"] for block in facts["blocks"]]
    assert facts["predicted_step_s"] >= 0.999 * max(steps[0], 2 * steps[1], steps[2])
    trace = json.loads(timeline.read_text())
    names = {event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M" and "name" in event["args"]}
    assert names == {"node (simulated)", "source", "block0", "block1", "block2"}
    console = Console(record=True, width=200)
    print_report(facts, console)
    text = console.export_text()
    assert "simulated: " in text and "simulated speed-up" in text and "predicted" not in text


def test_a_network_of_sleeping_devices_takes_their_time_and_hardly_any_core(tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEPING", "4 10 20")
    config = config_of(
        tmp_path / "run",
        data={"name": "generated", "shape": [1, 2, 2], "classes": 4, "size": 64, "batch_size": 2},
        network=Replacing({
            "factory": "tests.benchmarks.sleeping:build", "blocks": 4,
        }),
        placement={"backend": "ray"},
    )  # fmt: skip
    facts = plan_run(config, seconds=0.5)
    for block in facts["blocks"][1:]:
        assert block["step_s"] >= 0.02, "10 ms forwards, 10 ms for the weights' gradient"
        assert block["cpu_s"] < 0.5 * block["step_s"]
    assert facts["predicted_step_s"] < 0.7 * sum(block["step_s"] for block in facts["blocks"]), (
        "they sleep side by side"
    )


def test_neighbours_share_a_device_where_there_are_fewer_devices_than_blocks():
    assert devices_of([1.0, 1.0, 1.0, 1.0], [1.0, 1.0]) == [0, 0, 1, 1]
    assert devices_of([1.0, 1.0, 1.0, 1.0], [1.0, 3.0]) == [0, 1, 1, 1]
    assert devices_of([3.0, 1.0, 1.0], [1.0, 1.0, 1.0]) == [0, 1, 2]


MISTAKES = [
    (["--devices", "0"], "--devices: got 0, expected 1 to 1000"),
    (["--devices", "1001"], "--devices: got 1001, expected 1 to 1000"),
    (["--devices", "3", "--device-speed", "1,1"], "--device-speed: got 2 speeds for 3 devices"),
    (["--device-speed", "1,fast"], "--device-speed: got '1,fast', expected numbers above 0"),
    (["--device-speed", "1,0"], "--device-speed: got '1,0', expected numbers above 0"),
    (["--jitter", "0.5"], "--jitter: describes a simulated cluster, expected --devices, too"),
    (["--devices", "2", "--jitter", "-1"], "--jitter: got -1, expected 0 to 3"),
    (["--devices", "2", "--link-mb-per-s", "0"], "--link-mb-per-s: got 0, expected more than 0"),
    (["--devices", "2", "--latency-ms", "-1"], "--latency-ms: got -1, expected 0 or more"),
    (["--seconds", "0"], "--seconds: got 0, expected 0.1 to 600"),
    (["--timeline", "/nowhere/t.json"], "--timeline: /nowhere is no folder"),
    (["schedule.name=sequential"], "schedule.name: got sequential, expected pipeline or lockstep"),
    (["schedule.name=replay"], "schedule.name: got replay, expected pipeline or lockstep"),
    (["--devices", "5"], "--devices: got 5 for 4 blocks, expected at most one per block"),
    (["network.blocks=auto", "--devices", "9"], "network.num_blocks: got 9, expected at most 5"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_exit_code_2(words, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["plan", CONFIG, *words])
    written = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2
    assert written.startswith(f"unlocked: {sentence}") and "; " in written
