"""Jobs on a real Ray head with its job server on loopback and token authentication.

The head is shared by the tests of this file. A test gets a clean folder, an environment without a path of this
checkout, and deadlines.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.submit import STOP_WAIT_S
from tests.conftest import ROOT
from tests.deploy.manifests import groups, runtime_env_of, training_job
from tests.ray_head import RayHead

JOB_DEADLINE_S = 110.0
AGENT_PORT = 52365
SHORT = ["network.blocks=2", "training.epochs=2", "evaluation.every_epochs=2"]
RULE = """
import os
from actors import learning_rule
from actors.rules.local import Local

with open({log!r}, "a") as log:
    log.write(f"{{os.getpid()}} {{learning_rule.__file__}}\\n")

class Mine(Local):
    \"\"\"The local rule, in a module of the user's that says where the packages come from.\"\"\"
"""


@pytest.fixture(scope="module")
def head():
    head = RayHead()
    try:
        head.start()
        yield head
    finally:
        head.end()


def read_status(run):
    path = Path(run) / "status.json"
    return json.loads(path.read_text()) if path.exists() else {"batch": 0, "blocks": []}


def read_summary(run):
    return json.loads((Path(run) / "summary.json").read_text())


@pytest.mark.timeout(240)
def test_a_config_in_a_clean_folder_trains_as_a_job_with_the_packages_that_were_sent(head, tmp_path):
    """`unlocked submit` in a folder that holds a config, a module of the user's and old results, and no package."""
    folder, run, log = tmp_path / "project", tmp_path / "runs" / "digits", tmp_path / "imports.txt"
    folder.mkdir()
    shutil.copy(ROOT / "configs" / "quickstart.yaml", folder)
    (folder / "my_rule.py").write_text(RULE.format(log=str(log)))
    command = [
        sys.executable, "-m", "orchestrator", "submit", "quickstart.yaml", "--address", head.address, *SHORT,
        "rule.name=null", "rule.factory=my_rule:Mine", f"run_dir={run}",
    ]  # fmt: skip
    misleading = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    environment = head.environment() | {"PYTHONPATH": str(ROOT)} | misleading
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, timeout=JOB_DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"results in {run}" in done.stdout
    summary = read_summary(run)
    assert summary["status"] == "completed" and summary["epochs"] == 2 and len(summary["blocks"]) == 2
    assert summary["test_accuracy"] > 0.5
    [job] = head.get("/api/jobs/")
    assert job["status"] == "SUCCEEDED"
    assert job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_WAIT_S)
    origins = dict(line.split(" ", 1) for line in log.read_text().splitlines())
    blocks = [str(block["pid"]) for block in read_status(run)["blocks"]]
    assert len(blocks) == 2
    for pid in blocks:
        assert str(head.folder) in origins[pid], origins


class ManifestJob:
    """The RayJob of deploy/kuberay/: its command and its zip of the code, sent by deploy/submit.sh.

    `/shared` of the pods is a folder of the test's. `submitted` may be called again: the same words resume the run.
    """

    def __init__(self, head, shared, *overrides):
        self.head, job = head, training_job()
        here = str(shared) + "/"
        entrypoint = job["spec"]["entrypoint"].replace("/shared/", here).split()
        self.words = [*entrypoint[entrypoint.index("train") + 1 :], *overrides]
        [self.run] = [Path(word.removeprefix("run_dir=")) for word in self.words if word.startswith("run_dir=")]
        self.working_dir = runtime_env_of(job)["working_dir"].replace("/shared/", here)
        zip_checkout(Path(self.working_dir.removeprefix("file://")))

    @contextmanager
    def submitted(self):
        """Yield the script that follows the job, and the job's name once it has one."""
        before = self.names()
        environment = self.head.environment() | {
            "RAY_API_SERVER_ADDRESS": self.head.address,
            "WORKING_DIR": self.working_dir,
        }
        command = [str(ROOT / "deploy" / "submit.sh"), *self.words]
        with subprocess.Popen(
            command, cwd="/", env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as script:
            try:
                [name] = self.head.wait(lambda: self.names() - before, "the job", JOB_DEADLINE_S)
                yield script, name
            finally:
                script.kill()

    def names(self):
        return {job["submission_id"] for job in self.head.get("/api/jobs/")}


def zip_checkout(archive):
    """The part of `git archive --prefix=unlocked/` that a job runs."""
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as packed:
        for folder in ("actors", "orchestrator", "configs"):
            for path in (ROOT / folder).rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    packed.write(path, Path("unlocked", path.relative_to(ROOT)))


@pytest.mark.timeout(240)
def test_the_job_of_the_manifests_goes_through_the_script_and_stops_with_a_last_snapshot(head, tmp_path):
    job = ManifestJob(head, tmp_path / "shared", *SHORT, "training.epochs=3000", "evaluation.every_epochs=0")
    with job.submitted() as (script, name):
        head.wait(lambda: read_status(job.run)["batch"] >= 5, "the fifth batch", JOB_DEADLINE_S)
        head.stop_job(name)
        output, _ = script.communicate(timeout=STOP_WAIT_S)
    assert head.get(f"/api/jobs/{name}")["status"] == "STOPPED", output
    summary = read_summary(job.run)
    assert summary["status"] == "stopped"
    versions = {block["version"] for block in summary["blocks"]}
    assert len(versions) == 1 and versions.pop() >= 5


def test_without_the_token_nothing_is_accepted(head, tmp_path, capsys, monkeypatch):
    assert head.status_code("/api/jobs/", token=None) == 401
    assert head.status_code("/api/jobs/", token="0" * 32) == 403
    assert head.status_code("/api/jobs/", token="own") == 200
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "configs" / "quickstart.yaml", tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["submit", "quickstart.yaml", "run_dir=/shared/runs/x", "--address", head.address])
    written = capsys.readouterr().err
    assert ended.value.code == 2 and written.count("\n") == 1
    assert "refuses this user" in written and "RAY_AUTH_TOKEN" in written


def test_the_probes_of_the_manifests_answer_without_the_token(head):
    for group in groups(training_job()):
        container = group["template"]["spec"]["containers"][0]
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == AGENT_PORT
            assert head.status_code(asked["path"], token=None, port=head.agent_port) == 200
