"""deploy/cluster.yaml (`ray up`) and the Slurm script, as far as one machine without ssh and Slurm can tell."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.conftest import ROOT

DEADLINE_S = 30.0
HOSTS = yaml.safe_load((ROOT / "deploy" / "cluster.yaml").read_text())
RECORD = """#!/usr/bin/env bash
record() { printf '%s %s token=%s address=%s\\n' "$1" "${*:2}" "${RAY_AUTH_TOKEN-}" "${RAY_ADDRESS-}" >>"$RECORDS"; }
"""
STAND_INS = {
    "bin/scontrol": "printf 'node-a\\nnode-b\\n'",
    "bin/srun": """
cpus=1
for argument in "$@"; do
    case $argument in
        --nodelist=*) node=${argument#*=};;
        --cpus-per-task=*) cpus=${argument#*=};;
        --*) ;;
        *) break;;
    esac
    shift
done
exec env NODE="$node ($cpus CPUs)" "$@" """,
    "submit/.venv/bin/ray": """
trap 'record "$NODE" ray-ended; exit 1' TERM
record "$NODE" ray "$@"
while :; do sleep 0.05; done""",
    "submit/.venv/bin/python": """
case "$*" in
    -c*) echo secret ;;
    -m*) trap 'record here snapshot; exit ${CODE:-0}' TERM
         record here train "$@"
         [ -z "${FAILS-}" ] || exit 7
         while :; do sleep 0.05; done ;;
    *) until [ "$(grep -c 'ray start' "$RECORDS")" = "$2" ]; do sleep 0.02; done
       record here wait "$@" ;;
esac""",
}


def test_the_hosts_file_is_what_ray_s_schema_describes():
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(HOSTS, schema)
    for source in HOSTS["file_mounts"].values():
        assert source.startswith("~/") or (ROOT / source).is_file()


@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_host_asks_for_the_token_that_was_copied_to_it(role):
    [start] = [line for line in HOSTS[f"{role}_start_ray_commands"] if "ray start" in line]
    assert "RAY_AUTH_MODE=token" in start
    assert "~/.ray/auth_token" in HOSTS["file_mounts"]
    assert any("chmod 600 ~/.ray/auth_token" in line for line in HOSTS[f"{role}_start_ray_commands"])
    assert ("--dashboard-host=127.0.0.1" in start) == (role == "head")


class SlurmJob:
    """The batch script beside stand-ins for srun, scontrol, ray and python that write down what they are told."""

    def __init__(self, folder, **variables):
        self.records = folder / "records"
        for name, body in STAND_INS.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(RECORD + body + "\n")
            path.chmod(0o755)
        environment = {
            "PATH": f"{folder / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin", "RECORDS": str(self.records),
            "SLURM_SUBMIT_DIR": str(folder / "submit"), "SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_CPUS_PER_TASK": "8", **variables,
        }  # fmt: skip
        words = [str(ROOT / "deploy" / "slurm" / "train.sbatch"), "configs/quickstart.yaml", "run_dir=/shared/runs/q"]
        self.process = subprocess.Popen(
            ["bash", *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def lines(self):
        return self.records.read_text().splitlines() if self.records.exists() else []

    def until(self, fragment):
        over = time.monotonic() + DEADLINE_S
        while not any(fragment in line for line in self.lines()):
            assert time.monotonic() < over and self.process.poll() is None, self.lines()
            time.sleep(0.02)

    def end(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait(DEADLINE_S)


@pytest.fixture
def slurm_job(tmp_path):
    jobs = []

    def start(**variables):
        jobs.append(SlurmJob(tmp_path, **variables))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


def test_slurm_starts_a_head_then_workers_then_the_training_with_one_token_that_no_command_line_shows(slurm_job):
    job = slurm_job()
    job.until("train")
    job.process.send_signal(signal.SIGTERM)
    assert job.process.wait(DEADLINE_S) == 0
    told = [line.split(" token=")[0] for line in job.lines()]
    assert told[:5] == [
        "node-a (8 CPUs) ray start --head --block --port=23456 --include-dashboard=false --num-cpus=8",
        "here wait deploy/slurm/wait_for_nodes.py 1",
        "node-b (8 CPUs) ray start --block --address=node-a:23456 --num-cpus=8",
        "here wait deploy/slurm/wait_for_nodes.py 2",
        "here train -m orchestrator train configs/quickstart.yaml run_dir=/shared/runs/q",
    ]
    assert all(line.endswith("token=secret address=node-a:23456") for line in job.lines())
    assert not any("secret" in line for line in told)


def test_at_the_time_limit_the_training_writes_its_snapshot_before_the_nodes_end(slurm_job):
    job = slurm_job(CODE="3")
    job.until("train")
    job.process.send_signal(signal.SIGTERM)
    assert job.process.wait(DEADLINE_S) == 3
    ends = [line.split(" token=")[0] for line in job.lines()[5:]]
    assert ends[0] == "here snapshot" and sorted(ends[1:]) == [f"node-{name} (8 CPUs) ray-ended" for name in "ab"]


def test_a_training_that_fails_ends_the_slurm_job_with_its_exit_code_and_leaves_no_node(slurm_job):
    job = slurm_job(FAILS="1")
    assert job.process.wait(DEADLINE_S) == 7
    assert sum("ray-ended" in line for line in job.lines()) == 2
