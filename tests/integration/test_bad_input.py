import re
import sys
from pathlib import Path

import pytest
import torch

from orchestrator.cli import main

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "digits_cnn.yaml")
SMALL = """
data: {name: generated, shape: [1, 4, 4], classes: 3, size: 24, test_size: 6, batch_size: 8}
network: {name: mlp, widths: [8], batch_norm: true, blocks: 2}
training: {epochs: 1}
placement: {backend: in_process}
"""
PROGRESS = re.compile(r"(starting|training) \d+ ")
FACTORY = """
import torch

class Labelled:
    num_classes = 3

    def __init__(self, label):
        self.label = label

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.zeros(1, 4, 4), self.label if index == 20 else index % 3

def outside(train):
    return Labelled(7 if train else 0)

def broken(train):
    return {}

def raising():
    return 3
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A config that trains in a second, in a folder of its own, beside a module of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "user_module_of_bad_input.py").write_text(FACTORY)
    (tmp_path / "broken_of_bad_input.py").write_text("import a_package_that_nobody_has\n")
    yield "small.yaml"
    sys.modules.pop("user_module_of_bad_input", None)


def run(capsys, *arguments):
    """Return the exit code and what the command wrote on standard error."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return caught.value.code, capsys.readouterr().err


def refused(capsys, *arguments):
    """Return the one sentence that a mistake ends with."""
    code, written = run(capsys, *arguments)
    assert code == 2, written
    lines = [line for line in written.strip().splitlines() if not PROGRESS.match(line)]
    assert len(lines) == 1 and lines[0].startswith("unlocked: "), written
    assert re.search(r"[\w)'?./]$", lines[0]), written
    assert not re.search(r"Traceback|pydantic|https?://|Error\(", written), written
    return lines[0]


FACTORIES = {
    "data": ["data.name=null"],
    "network": ["network.name=null", "network.widths=null", "network.batch_norm=null"],
    "rule": ["rule.name=null"],
    "objective": ["objective.name=null"],
}

MISTAKES = [
    (["trainig.epochs=3"], ["trainig", "did you mean 'training'?"]),
    (["training.epochs=many"], ["training.epochs: got 'many'", "an integer"]),
    (["network.blocks=0"], ["network.blocks: got 0", "1 or more"]),
    (["network.blocks=9"], ["network.blocks: got 9", "1 to 2", "hidden1, output"]),
    (["network.blocks=null", "network.cuts=[outputt]"], ["network.cuts: got 'outputt'", "did you mean 'output'?"]),
    (["data.batch_size=25"], ["data.batch_size: got 25", "24 training samples"]),
    (["data.limit=17"], ["data.batch_size: got 8", "a last batch of one sample of 17", "batch norm needs two"]),
    (["data.validation=24"], ["data.validation", "24"]),
    (["data.shape=[1,4]"], ["shape", "[1, 4]"]),
    (["rule.name=backprop", "schedule.name=sequential"], ["schedule.name: got 'sequential'", "backprop"]),
    (["staleness.max=-3"], ["staleness.max: got -3", "at least 0"]),
    (["wire=bf17"], ["wire: got 'bf17'", "'bf16'"]),
    (["wire={'block7->block8': bf16}"], ["wire: got edge 'block7->block8'", "expected one of activation, feedback"]),
    (["network.weights=nowhere.safetensors"], ["network.weights: nowhere.safetensors", ".safetensors file"]),
    (["network.weights=small.yaml"], ["network.weights: small.yaml can't be read"]),
    (["optimizer.momentum=much"], ["optimizer: sgd refuses", "much"]),
    (["optimizer.name=adam", "optimizer.betas=[2,0.9]"], ["optimizer: adam refuses", "betas"]),
    (["epochs"], ["epochs: no such config file"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "fragments"), MISTAKES, ids=[" ".join(row[0]) for row in MISTAKES])
def test_a_mistake_in_the_config_ends_with_one_sentence(small, capsys, arguments, fragments):
    message = refused(capsys, "train", small, *arguments)
    for fragment in fragments:
        assert fragment in message


def test_without_a_mistake_the_same_config_trains_and_is_not_trained_twice(small, capsys):
    for _ in range(2):
        assert run(capsys, "train", small, "run_dir=run")[0] == 0
    message = refused(capsys, "train", small, "run_dir=run", "seed=5")
    assert "holds another run (it differs in seed)" in message and "--fresh" in message
    assert run(capsys, "train", small, "run_dir=run", "seed=5", "--fresh")[0] == 0
    assert "expected a name that ends in .safetensors" in refused(capsys, "export", "run", "network.pt")
    assert "can't be written" in refused(capsys, "export", "run", "no/such/folder/network.safetensors")
    assert not Path("network.pt").exists()


def test_a_run_directory_that_holds_something_else_is_refused(small, capsys, tmp_path):
    assert "is no run" in refused(capsys, "train", small, f"run_dir={tmp_path}")
    assert "small.yaml" in refused(capsys, "train", small, "run_dir=small.yaml")


def test_a_config_file_that_is_missing_is_refused(capsys):
    assert "nowhere.yaml: no such config file" in refused(capsys, "train", "nowhere.yaml")
    assert "train: got no config file" in refused(capsys, "train", "training.epochs=3")


@pytest.mark.parametrize("backend", ["in_process", "ray"])
def test_a_gpu_where_there_is_none_is_refused(small, capsys, monkeypatch, backend):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if backend == "ray":
        ray_cluster = pytest.importorskip("orchestrator.cluster.ray_cluster")
        monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray_cluster, "is_own_ray", lambda: True)
        monkeypatch.setattr(ray_cluster.ray, "cluster_resources", lambda: {"CPU": 2.0})
    message = refused(capsys, "train", small, "placement.gpus_per_block=1", f"placement.backend={backend}")
    assert "placement.gpus_per_block" in message


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "cifar10", "image_folder"])
def test_a_data_folder_that_is_missing_is_refused(small, capsys, name):
    overrides = [f"data.{key}=null" for key in ("shape", "classes", "size", "test_size")]
    Path("data.yaml").write_text("network: {name: mlp}\nplacement: {backend: in_process}\n")
    message = refused(capsys, "train", "data.yaml", f"data.name={name}", "data.root=/nonexistent")
    assert "/nonexistent" in message and "data.root" in message
    assert "unknown key" in refused(capsys, "train", small, *overrides, f"data.name={name}")


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize(
    "factory", ["a_package_that_nobody_has:f", "broken_of_bad_input:f", "user_module_of_bad_input:nothing", "noColon"]
)
def test_a_factory_that_does_not_import_is_refused(small, capsys, kind, factory):
    Path("user.yaml").write_text(SMALL.replace("widths: [8], batch_norm: true, ", "") if kind == "network" else SMALL)
    if kind == "data":
        Path("user.yaml").write_text("network: {name: mlp}\nplacement: {backend: in_process}\n")
    message = refused(capsys, "train", "user.yaml", f"{kind}.name=null", f"{kind}.factory={factory}")
    assert f"{kind}.factory" in message and factory in message


def user_data(small, function, *more):
    Path("user.yaml").write_text("network: {name: mlp, blocks: 2}\nplacement: {backend: in_process}\n")
    return ["user.yaml", f"data.factory=user_module_of_bad_input:{function}", "data.batch_size=8", *more]


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_label_outside_the_classes_is_refused_with_the_sample_s_number(small, capsys, blocks):
    message = refused(capsys, "train", *user_data(small, "outside", f"network.blocks={blocks}"))
    assert "sample 20 of the train split has label 7" in message and "0..2" in message


def test_a_dataset_factory_that_returns_no_dataset_is_refused(small, capsys):
    assert "returned dict" in refused(capsys, "train", *user_data(small, "broken"))
    assert "callable with train=True" in refused(capsys, "train", *user_data(small, "raising"))


@pytest.mark.parametrize("command", ["evaluate", "status", "export"])
def test_a_folder_that_is_no_run_is_refused(small, capsys, tmp_path, command):
    more = ["out.safetensors"] if command == "export" else []
    for folder in (str(tmp_path), "nowhere", small):
        assert "no run (it has no config.yaml)" in refused(capsys, command, folder, *more)


def test_a_wrong_command_or_option_ends_with_exit_code_2(capsys):
    for arguments in (["trian"], ["train"], ["train", DIGITS, "--frehs"], ["export", "run"]):
        code, written = run(capsys, *arguments)
        assert code == 2 and "Traceback" not in written
