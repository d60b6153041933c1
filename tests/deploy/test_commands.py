"""What deploy/ runs and names exists, takes the arguments it is given, and is the same command everywhere."""

import itertools
import os
import re
import shlex
import subprocess

import click
import pytest
import yaml
from packaging.requirements import Requirement
from ray.scripts.scripts import cli

from deploy.dependencies import dependencies
from orchestrator.cli import app
from orchestrator.config import load_runs
from orchestrator.submit import ENTRYPOINT, JOB_ENVIRONMENT
from tests.conftest import ROOT
from tests.deploy.manifests import KUBERAY, load, training_job

DEPLOY = ROOT / "deploy"
TEXTS = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
OWN_PATH = re.compile(r"(?<![\w./-])(?:\./)?((?:configs|deploy|orchestrator|actors|tests)/[\w./-]*\w)")
TRAIN = re.compile(r"(?:(?:orchestrator|unlocked) (?:train|submit)|submit\.sh) (configs/[^\n`]*)")
RAY = re.compile(r"(?<![\w.-])ray ([a-z][^\n`;|>]*)")
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands}


def lines_of(path):
    """A file's text with its continued lines joined."""
    return re.sub(r"\\\n\s*", " ", path.read_text())


def name_of(path):
    return path.relative_to(DEPLOY).as_posix()


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_path_of_the_checkout_that_is_named_exists(path):
    missing = [found for found in OWN_PATH.findall(path.read_text()) if not (ROOT / found).exists()]
    assert missing == []


def test_the_search_for_paths_finds_them():
    assert len([found for path in TEXTS for found in OWN_PATH.findall(path.read_text())]) > 20


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_command_of_ours_exists(path):
    used = re.findall(r"(?:python3? -m orchestrator|(?:bin/|^ {4}|`)unlocked) (\w+)", path.read_text(), re.M)
    assert set(used) <= COMMANDS


def ray_commands():
    """Every command of Ray's own that is named: where, its words, and the options that it is given."""
    found = []
    for path in TEXTS:
        for line in RAY.findall(lines_of(path)):
            given = re.split(" -- | #", line)[0]
            words = list(itertools.takewhile(re.compile(r"[a-z][a-z-]*$").match, given.split()))
            found.append((name_of(path), words, set(re.findall(r"--[a-z][a-z-]*", given))))
    return found


def test_every_command_of_ray_exists_and_takes_the_options_that_it_is_given():
    for name, words, given in ray_commands():
        command = cli
        while isinstance(command, click.Group):
            assert words and words[0] in command.commands, f"{name}: ray {words}"
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert given <= known, f"{name}: ray {command.name}"


def test_the_search_for_ray_s_commands_finds_them():
    found = [(name, *words[:2]) for name, words, _ in ray_commands()]
    assert ("submit.sh", "job", "submit") in found and ("README.md", "job", "stop") in found
    assert found.count(("slurm/train.sbatch", "start")) == 2 and found.count(("cluster.yaml", "start")) == 2
    options = {option for _, _, given in ray_commands() for option in given}
    assert {"--runtime-env-json", "--dashboard-host", "--include-dashboard", "--num-cpus", "--generate"} <= options


def entrypoints():
    [patch] = load(KUBERAY / "overlays" / "gpu-job" / "entrypoint.yaml")
    return {"components/job": training_job()["spec"]["entrypoint"], "overlays/gpu-job": patch[0]["value"]}


@pytest.mark.parametrize("name", entrypoints())
def test_a_manifest_s_command_is_the_one_of_the_script_and_of_unlocked_submit(name):
    words = shlex.split(entrypoints()[name])
    assert tuple(words[: len(ENTRYPOINT)]) == ENTRYPOINT
    assert f"-- {shlex.join(ENTRYPOINT)} " in lines_of(DEPLOY / "submit.sh")
    assert f"{shlex.join(ENTRYPOINT)} " in lines_of(DEPLOY / "slurm" / "train.sbatch")


def test_the_script_gives_a_stopped_job_the_time_that_unlocked_submit_gives():
    [given] = re.findall(r"--runtime-env-json '([^']*)'", lines_of(DEPLOY / "submit.sh"))
    assert yaml.safe_load(given) == {"env_vars": dict(JOB_ENVIRONMENT)}


def trainings():
    """Every training that is named: where, and its words as a shell would split them."""
    texts = {"the README": ROOT / "README.md", **{name_of(path): path for path in TEXTS}}
    lines = [(name, line) for name, path in texts.items() for line in TRAIN.findall(lines_of(path))]
    found = [(name, shlex.split(line.removesuffix(" ..."), comments=True)) for name, line in lines]
    return found + [(name, shlex.split(text)[len(ENTRYPOINT) :]) for name, text in entrypoints().items()]


@pytest.mark.parametrize(("name", "words"), trainings())
def test_the_settings_of_every_training_that_is_named_are_valid(name, words, catalog):
    given = [word for word in words if not word.startswith(("--", "http"))]
    files = [str(ROOT / word) for word in given if "=" not in word]
    runs = load_runs(files, [word for word in given if "=" in word], catalog)
    assert runs and all(run.run_dir is not None for run in runs)


def test_the_trainings_of_the_readmes_were_found_to_the_last_word():
    found = [word for _, words in trainings() for word in words]
    for word in ("faults.kill=[{actor: block1, batch: 77}]", "placement.labels={rack: b}", "seed=[1,2,3]"):
        assert word in found
    assert "placement.pin_cpus=true" in found, "it stands after a quoted one"
    assert {"the README", "README.md", "submit.sh", "components/job"} <= {name for name, _ in trainings()}


@pytest.mark.parametrize("name", ["submit.sh", "slurm/train.sbatch"])
def test_a_script_is_valid_bash_and_stops_at_the_first_error(name):
    path = DEPLOY / name
    checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "set -euo pipefail" in path.read_text()


def test_the_script_is_executable():
    assert os.access(DEPLOY / "submit.sh", os.X_OK)


def test_the_image_holds_the_dependencies_of_the_package_and_no_second_list(tmp_path):
    text = lines_of(DEPLOY / "Dockerfile")
    instructions = [line for line in text.splitlines() if line and not line.startswith("#")]
    ours = [line for line in instructions if line.startswith("COPY")]
    assert ours == ["COPY pyproject.toml deploy/dependencies.py deploy/constraints.txt /tmp/build/"]
    sent = [line.removeprefix("!") for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")[1:] if line]
    assert sent == ours[0].split()[1:-1]
    for source in sent:
        (tmp_path / source.rpartition("/")[2]).write_text((ROOT / source).read_text())
    asked = re.findall(r"(python dependencies\.py [^>]*) > (\S+)", text)
    for command, file in asked:
        with open(tmp_path / file, "w") as out:
            subprocess.run(command.split(), cwd=tmp_path, stdout=out, timeout=30, check=True)
        assert re.search(rf"pip install .*-r {re.escape(file)}", text)
    listed = [line for _, file in asked for line in (tmp_path / file).read_text().splitlines()]
    assert sorted(listed) == sorted(dependencies(ROOT / "pyproject.toml"))
    for words in re.findall(r"pip install ([^&\n]*)", text):
        plain = re.sub(r'--index-url "[^"]*"', "", words).split()
        assert all(word in ("-r", "-c") or word.endswith(".txt") for word in plain), "a package named by hand"


def test_the_image_is_slim_and_takes_the_arguments_that_are_given_to_it():
    text = lines_of(DEPLOY / "Dockerfile")
    declared = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.M))
    assert declared["DEVICE"] == "cpu" and '--index-url "https://download.pytorch.org/whl/${DEVICE}"' in text
    assert re.search(r"^FROM python:\$\{PYTHON\}-slim$", text, re.M) and "PYTHON" in declared
    assert set(re.findall(r"\$\{(\w+)\}", text)) == declared.keys(), "each argument is used, and none is not declared"
    assert text.index("FROM ") < text.index("ARG DEVICE="), "one that stands before FROM is empty after it"
    given = {
        name for path in [ROOT / "README.md", *TEXTS] for name in re.findall(r"--build-arg (\w+)=", lines_of(path))
    }
    assert given and given <= declared.keys()


def test_every_host_has_the_versions_that_must_agree():
    """Those that the probe of `orchestrator/cluster/probe.py` compares, and what weights depend on."""
    pinned = {each.name: each for each in map(Requirement, lines_of(DEPLOY / "constraints.txt").splitlines())}
    assert pinned.keys() == {"ray", "torch", "torchvision"}
    for declared in map(Requirement, dependencies(ROOT / "pyproject.toml", only=pinned)):
        [version] = pinned[declared.name].specifier
        assert version.operator == "==" and declared.specifier.contains(version.version)
    for name in ("Dockerfile", "cluster.yaml"):
        installed = re.findall(r"pip install ([^&\n]*)", lines_of(DEPLOY / name))
        assert installed and all("-c constraints.txt" in words for words in installed), name


def test_the_image_runs_as_a_user():
    users = re.findall(r"^USER (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.M)
    assert users and int(users[-1]) > 0
