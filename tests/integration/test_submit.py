"""Jobs on a real Ray head with its job server on loopback and token authentication.

The tests of this file share the head and two jobs. A job gets a clean folder, an environment without a path of this
checkout, and deadlines.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.submit import STOP_WAIT_S
from tests.conftest import ROOT
from tests.deploy.manifests import groups, runtime_env_of, training_job
from tests.ray_head import RayHead

JOB_DEADLINE_S = 200.0
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


class ProjectJob:
    """`unlocked submit` in a folder that holds a config and a module of the user's, and no package."""

    def __init__(self, head, folder):
        self.head, self.project, self.run = head, folder / "project", folder / "runs" / "digits"
        self.imports = folder / "imports.txt"
        self.project.mkdir()
        shutil.copy(ROOT / "configs" / "quickstart.yaml", self.project)
        (self.project / "my_rule.py").write_text(RULE.format(log=str(self.imports)))

    def submit(self):
        words = ["rule.name=null", "rule.factory=my_rule:Mine", f"run_dir={self.run}"]
        command = [sys.executable, "-m", "orchestrator", "submit", "quickstart.yaml", "--address", self.head.address]
        misleading = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
        environment = self.head.environment() | {"PYTHONPATH": str(ROOT)} | misleading
        return following([*command, *SHORT, *words], self.project, environment)


class ManifestJob:
    """The RayJob of deploy/kuberay/: its command and its zip of the code, sent by deploy/submit.sh.

    `/shared` of the pods is a folder of the test's. Submitting it again gives the same words, with the same `run`.
    """

    def __init__(self, head, shared, *overrides):
        self.head, job = head, training_job()
        here = str(shared) + "/"
        entrypoint = job["spec"]["entrypoint"].replace("/shared/", here).split()
        self.words = [*entrypoint[entrypoint.index("train") + 1 :], *overrides]
        [self.run] = [Path(word.removeprefix("run_dir=")) for word in self.words if word.startswith("run_dir=")]
        self.working_dir = runtime_env_of(job)["working_dir"].replace("/shared/", here)
        zip_checkout(Path(self.working_dir.removeprefix("file://")))

    def submit(self):
        where = {"RAY_API_SERVER_ADDRESS": self.head.address, "WORKING_DIR": self.working_dir}
        return following([str(ROOT / "deploy" / "submit.sh"), *self.words], "/", self.head.environment() | where)


def following(command, folder, environment):
    """Start a command that submits a job and follows it to its end."""
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def jobs_of(head, run):
    """The jobs that train into a run directory, as the job server tells of them."""
    return [job for job in head.get("/api/jobs/") if f"run_dir={run}" in job["entrypoint"].split()]


@pytest.fixture(scope="module")
def submitted(head, tmp_path_factory):
    """Both jobs with the commands that follow them, started together: most of their time is the start of processes."""
    project = ProjectJob(head, tmp_path_factory.mktemp("clean"))
    long = ["training.epochs=3000", "evaluation.every_epochs=0"]
    manifest = ManifestJob(head, tmp_path_factory.mktemp("pods") / "shared", *SHORT, *long)
    with project.submit() as first, manifest.submit() as second:
        try:
            yield {"project": (project, first), "manifest": (manifest, second)}
        finally:
            first.kill()
            second.kill()


def zip_checkout(archive):
    """The part of `git archive --prefix=unlocked/` that a job runs."""
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as packed:
        for folder in ("actors", "orchestrator", "configs"):
            for path in (ROOT / folder).rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    packed.write(path, Path("unlocked", path.relative_to(ROOT)))


def read_status(run):
    path = Path(run) / "status.json"
    return json.loads(path.read_text()) if path.exists() else {"batch": 0, "blocks": []}


def read_summary(run):
    return json.loads((Path(run) / "summary.json").read_text())


@pytest.mark.timeout(300)
def test_the_job_of_the_manifests_goes_through_the_script_and_stops_with_a_last_snapshot(head, submitted):
    job, script = submitted["manifest"]
    head.wait(lambda: read_status(job.run)["batch"] >= 5, "the fifth batch", JOB_DEADLINE_S)
    [told] = jobs_of(head, job.run)
    head.stop_job(told["submission_id"])
    output, _ = script.communicate(timeout=JOB_DEADLINE_S)
    [told] = jobs_of(head, job.run)
    assert told["status"] == "STOPPED", output
    summary = read_summary(job.run)
    assert summary["status"] == "stopped"
    versions = {block["version"] for block in summary["blocks"]}
    assert len(versions) == 1 and versions.pop() >= 5


@pytest.mark.timeout(300)
def test_a_config_in_a_clean_folder_trains_as_a_job_with_the_packages_that_were_sent(head, submitted):
    job, command = submitted["project"]
    output, _ = command.communicate(timeout=JOB_DEADLINE_S)
    assert command.returncode == 0, output
    assert f"results in {job.run}" in output
    summary = read_summary(job.run)
    assert summary["status"] == "completed" and summary["epochs"] == 2 and len(summary["blocks"]) == 2
    assert summary["test_accuracy"] > 0.5
    [told] = jobs_of(head, job.run)
    assert told["status"] == "SUCCEEDED"
    assert told["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_WAIT_S)
    origins = dict(line.split(" ", 1) for line in job.imports.read_text().splitlines())
    blocks = [str(block["pid"]) for block in read_status(job.run)["blocks"]]
    assert len(blocks) == 2
    for pid in blocks:
        assert str(head.folder) in origins[pid], origins


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
