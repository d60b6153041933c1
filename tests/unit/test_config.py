import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from actors.errors import UserError
from orchestrator.catalog import find_catalog
from orchestrator.config import (
    RunConfig,
    config_from_mapping,
    expand_seeds,
    load_config,
    load_runs,
    resolved,
    same_run,
)

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
METHODS = sorted((ROOT / "configs" / "methods").glob("*.yaml"))
BASE = ROOT / "configs" / "digits_cnn.yaml"
CATALOG = find_catalog()
SMALL = {"data": {"name": "digits"}, "network": {"name": "mlp"}}


def load(*overrides, files=(BASE,)):
    return load_config(files, overrides, CATALOG)


def make(**sections):
    return config_from_mapping(SMALL | sections, CATALOG)


def yaml_file(folder, text, name="extra.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def every_shipped_config():
    return [[path] for path in CONFIGS] + [[BASE, path] for path in METHODS]


def test_every_yaml_under_configs_loads():
    files = every_shipped_config()
    for merged in files:
        assert isinstance(load_config(merged, [], CATALOG), RunConfig), merged
    shipped = set((ROOT / "configs").rglob("*.yaml"))
    assert {path for merged in files for path in merged} == shipped and METHODS


def test_every_shipped_config_resolves_to_yaml_that_loads_back_to_an_equal_config(tmp_path):
    for number, merged in enumerate(every_shipped_config()):
        config = load_config(merged, [], CATALOG)
        text = OmegaConf.to_yaml(OmegaConf.create(resolved(config)))
        copy = yaml_file(tmp_path, text, f"{number}.yaml")
        assert load_config([copy], [], CATALOG) == config
        assert same_run(resolved(config), OmegaConf.to_container(OmegaConf.load(copy))) == []


@pytest.mark.parametrize(
    "sections",
    [
        {
            "optimizer": {"name": "adam", "lr": 1e-3, "betas": [0.8, 0.9], "blocks": {0: {"lr": 0.1}, 2: {}}},
            "network": {"name": "mlp", "blocks": 3},
        },
        {"optimizer": {"clip": 1.0, "heads": {"clip": None, "lr": 0.5}, "momentum": 0.9}},
        {"data": {"name": "generated", "shape": [1, 4, 4], "classes": 3}},
        {"objective": {"name": "cross_entropy", "head": {"depth": 2}}, "seed": 7, "run_dir": "some where/1e3"},
        {"placement": {"backend": "in_process", "cpus_per_block": 0.5}, "data": {"name": "digits", "root": "1e3"}},
        {"network": {"name": "mlp", "cuts": ["head"]}, "evaluation": {"every_batches": 3}},
    ],
)  # fmt: skip
def test_unusual_settings_resolve_to_yaml_that_loads_back(tmp_path, sections):
    config = make(**sections)
    text = OmegaConf.to_yaml(OmegaConf.create(resolved(config)))
    assert load_config([yaml_file(tmp_path, text)], [], CATALOG) == config


def test_files_merge_left_to_right_and_overrides_come_last(tmp_path):
    second = yaml_file(tmp_path, "data: {batch_size: 64}\noptimizer: {lr: 0.5}", "second.yaml")
    third = yaml_file(tmp_path, "data: {batch_size: 16}", "third.yaml")
    config = load("optimizer.lr=0.25", files=[BASE, second, third])
    assert config.data.batch_size == 16 and config.optimizer.lr == 0.25
    assert config.data.name == "digits" and config.optimizer.options["momentum"] == 0.9
    assert load(files=[third, BASE]).data.batch_size == 32


def test_a_key_of_a_rule_or_objective_leaves_its_default_name(tmp_path):
    config = make(objective={"head": {"depth": 2}}, rule={})
    assert (config.objective.name, config.rule.name) == ("cross_entropy", "local")


def test_a_dataset_takes_every_option_that_it_lists():
    options = {"shape": [1, 4, 4], "classes": 3, "size": 40, "test_size": 9, "noise": 1.0}
    assert make(data={"name": "generated", **options}).data.options == options
    assert make(data={"name": "digits", "augment": ["crop:4", "flip"]}).data.augment == ["crop:4", "flip"]


def test_the_last_of_two_overrides_of_one_key_holds():
    assert load("training.epochs=2", "training.epochs=3").training.epochs == 3


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "0.001", "+1e-3"])
def test_a_rate_in_any_notation_is_a_float_from_yaml_and_from_the_command_line(tmp_path, text):
    extra = yaml_file(tmp_path, f"optimizer: {{lr: {text}, weight_decay: {text}}}")
    for config in (load(files=[BASE, extra]), load(f"optimizer.lr={text}", f"optimizer.weight_decay={text}")):
        assert config.optimizer.lr == 1e-3
        assert isinstance(config.optimizer.options["weight_decay"], float)
        assert config.optimizer.options["weight_decay"] == 1e-3


def test_overrides_may_hold_lists_mappings_nested_keys_and_equals_signs(tmp_path):
    config = load(
        "network.channels=[8,16]",
        "objective.head={kind: cnn, depth: 2}",
        "optimizer.heads.lr=0.5",
        "optimizer.blocks.1.lr=0.125",
        f"run_dir={tmp_path}/a=b",
    )
    assert config.network.options["channels"] == [8, 16]
    assert config.objective.options == {"head": {"kind": "cnn", "depth": 2}}
    assert config.optimizer.heads == {"lr": 0.5}
    assert config.optimizer.blocks == {1: {"lr": 0.125}}
    assert config.run_dir == f"{tmp_path}/a=b"


def test_null_resets_a_key_to_nothing():
    assert load("evaluation.every_epochs=null").evaluation.every_epochs is None


def test_an_interpolation_reads_another_key():
    assert load("evaluation.batch_size=${data.batch_size}").evaluation.batch_size == 32


def test_an_empty_file_changes_nothing(tmp_path):
    assert load(files=[BASE, yaml_file(tmp_path, "# nothing\n")]) == load()


def test_what_is_left_out_has_a_default():
    config = make()
    assert (config.rule.name, config.objective.name, config.schedule.name) == (
        "local",
        "cross_entropy",
        "pipeline",
    )
    assert (config.seed, config.data.batch_size, config.training.epochs) == (0, 128, 5)
    assert (config.buffers.capacity, config.buffers.window, config.placement.backend) == (4, None, "ray")
    assert config.evaluation.every_batches is None and config.evaluation.every_epochs is None


def test_keys_of_a_plug_in_are_collected_as_its_options():
    config = make(
        network={"name": "mlp", "widths": [8], "blocks": 2},
        objective={"name": "cross_entropy", "head": {"kind": "linear"}},
        optimizer={"name": "adam", "lr": 0.1, "eps": 1e-6},
        data={"name": "generated", "classes": 3},
    )
    assert config.network.options == {"widths": [8]} and config.network.blocks == 2
    assert config.objective.options == {"head": {"kind": "linear"}}
    assert config.optimizer.options == {"eps": 1e-6}
    assert config.data.options == {"classes": 3}
    assert config.rule.options == {}


def test_resolved_puts_options_beside_the_other_keys():
    plain = resolved(make(network={"name": "mlp", "widths": [8]}))
    assert plain["network"] == {"name": "mlp", "widths": [8]}
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


@pytest.mark.parametrize(
    "override",
    [
        "run_dir=elsewhere", "placement.backend=in_process", "placement.threads=2",
        "evaluation.every_epochs=1", "training.epochs=20",
    ],
)  # fmt: skip
def test_a_run_stays_the_same_run_when_only_its_surroundings_change(override):
    assert same_run(resolved(load()), resolved(load(override))) == []


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=1", "seed"),
        ("data.batch_size=16", "data.batch_size"),
        ("data.limit=100", "data.limit"),
        ("network.channels=[16,32,32,32]", "network.channels"),
        ("objective.head.depth=2", "objective.head.depth"),
        ("optimizer.momentum=0.8", "optimizer.momentum"),
        ("optimizer.blocks.1.lr=0.5", "optimizer.blocks.1.lr"),
        ("training.accumulate=2", "training.accumulate"),
        ("training.epochs=10", "training.epochs"),
        ("schedule.name=lockstep", "schedule.name"),
    ],
)
def test_a_run_is_another_run_when_what_it_learns_changes(override, key):
    assert same_run(resolved(load()), resolved(load(override))) == [key]


def test_a_missing_key_differs_from_any_value_in_both_directions():
    with_limit, without = resolved(load("data.limit=9")), resolved(load())
    assert same_run(with_limit, without) == same_run(without, with_limit) == ["data.limit"]


def test_a_list_of_seeds_makes_one_run_each_in_its_own_directory(tmp_path):
    runs = load_runs([BASE], ["seed=[1,2,3]", f"run_dir={tmp_path}"], CATALOG)
    assert [run.seed for run in runs] == [1, 2, 3]
    assert [run.run_dir for run in runs] == [f"{tmp_path}/seed-{seed}" for seed in (1, 2, 3)]
    assert [key for run in runs[1:] for key in same_run(resolved(runs[0]), resolved(run))] == ["seed", "seed"]


def test_one_seed_is_one_run_in_the_directory_itself():
    raw = {"seed": 3, "run_dir": "runs/x"}
    assert expand_seeds(raw) == [raw]
    assert expand_seeds({}) == [{}]
    assert [run["run_dir"] for run in expand_seeds({"seed": [3], "run_dir": "runs/x"})] == ["runs/x/seed-3"]


@pytest.mark.parametrize("seeds", [[], [1, 1], [1, "1"]])
def test_seeds_that_are_not_different_numbers_are_refused(seeds):
    with pytest.raises(UserError, match="list every seed once"):
        expand_seeds({"seed": seeds})


def test_the_run_directory_is_named_after_the_files_unless_given():
    method = ROOT / "configs" / "methods" / "dgl.yaml"
    assert load_runs([BASE, method], [], CATALOG)[0].run_dir == "runs/digits_cnn-dgl"
    assert load_runs([BASE], ["seed=[4]"], CATALOG)[0].run_dir == "runs/digits_cnn/seed-4"
    assert load_runs([BASE], ["run_dir=here"], CATALOG)[0].run_dir == "here"


@pytest.mark.parametrize("name", ["dni", "cdni", "direct_feedback_alignment", "pipelined_backprop", "features_replay"])
def test_methods_whose_feedback_may_be_late_ship_with_a_delay_that_hides_messages_too(name):
    assert load(files=(BASE, ROOT / "configs" / "methods" / f"{name}.yaml")).schedule.delay_per_hop == 2


def test_a_mapping_and_its_yaml_make_the_same_config(tmp_path):
    raw = yaml.safe_load(BASE.read_text())
    assert config_from_mapping(raw, CATALOG) == load()


@pytest.mark.parametrize(
    "module",
    ["orchestrator", "orchestrator.config", "orchestrator.wiring", "actors.needs", "actors.edges"],
)
def test_config_and_wiring_import_neither_torch_nor_ray(module):
    code = f"import sys, {module}; print(*sorted({{'torch', 'ray'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr
