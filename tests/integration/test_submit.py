"""Jobs on a real Ray head with its job server on loopback and token authentication.

One run, two jobs: the manifests' job is stopped midway, and `unlocked submit` goes on with its run. A job gets a
folder without our packages or a zip of them, an environment without a path of this checkout, and deadlines.
"""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest
import yaml

from orchestrator.api import train
from orchestrator.catalog import find_catalog
from orchestrator.cli import main
from orchestrator.config import load_config
from orchestrator.measures import DESCRIPTIONS
from orchestrator.submit import STOP_WAIT_S
from tests.conftest import ROOT
from tests.deploy.manifests import groups, runtime_env_of, training_job
from tests.ray_head import RayHead

JOB_DEADLINE_S = 200.0
PROMETHEUS = yaml.safe_load((ROOT / "deploy" / "monitoring" / "prometheus.yml").read_text())
[FOUND_BY_PROMETHEUS] = map(Path, PROMETHEUS["scrape_configs"][0]["file_sd_configs"][0]["files"])
"""In the folder of the head; ours has one of its own instead of /tmp/ray."""
MEASURES = {f"ray_{name}" for name in DESCRIPTIONS}
AGENT_PORT = 52365
SHORT = ["network.blocks=2", "training.epochs=4", "evaluation.every_epochs=4"]
RAY_STOPS_WITHIN_S = 3.0
"""What Ray leaves a stopped job without the variable that ours are given."""
MINE = ["rule.name=null", "rule.factory=my_rule:Mine"]
RULE = """
import os
import time
import orchestrator
from actors import learning_rule
from actors.rules.local import Local

with open({log!r}, "a") as log:
    for module in (learning_rule, orchestrator):
        log.write(f"{{os.getpid()}} {{module.__file__}}\\n")

class Mine(Local):
    \"\"\"The local rule, in a module of the user's that tells where the packages come from, and can dawdle.\"\"\"

    def now(self, p, credit):
        if os.path.exists({dawdle!r}):
            time.sleep(1.0)  # what waits on an edge takes longer than Ray lets a stopped job live
        return super().now(p, credit)
"""


@pytest.fixture(scope="module")
def head():
    head = RayHead()
    try:
        head.start()
        yield head
    finally:
        head.end()


class Jobs:
    """The same run twice: `/shared` of the manifests' pods is a folder of the test's."""

    def __init__(self, head, folder):
        self.head, self.project, job = head, folder / "project", training_job()
        here = str(folder / "shared") + "/"
        entrypoint = job["spec"]["entrypoint"].replace("/shared/", here).split()
        self.words = [*entrypoint[entrypoint.index("train") + 1 :], *SHORT, *MINE]
        [self.run] = [Path(word.removeprefix("run_dir=")) for word in self.words if word.startswith("run_dir=")]
        self.working_dir = runtime_env_of(job)["working_dir"].replace("/shared/", here)
        self.imports, self.dawdle = folder / "imports.txt", folder / "dawdle"
        (self.project / "configs").mkdir(parents=True)
        shutil.copy(ROOT / "configs" / "quickstart.yaml", self.project / "configs")
        (self.project / "my_rule.py").write_text(RULE.format(log=str(self.imports), dawdle=str(self.dawdle)))
        zip_checkout(Path(self.working_dir.removeprefix("file://")), self.project / "my_rule.py")

    def submit_with_script(self, *more):
        """The RayJob of deploy/kuberay/: its command and its zip of the code, sent by deploy/submit.sh."""
        where = {"RAY_API_SERVER_ADDRESS": self.head.address, "WORKING_DIR": self.working_dir}
        command = [str(ROOT / "deploy" / "submit.sh"), *self.words, *more]
        return following(command, "/", self.head.environment() | where)

    def submit_from_clean_folder(self):
        """`unlocked submit` in a folder that holds the config and a module of the user's, and no package."""
        command = [sys.executable, "-m", "orchestrator", "submit", *self.words, "--address", self.head.address]
        misleading = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
        environment = self.head.environment() | {"PYTHONPATH": str(ROOT)} | misleading
        return following(command, self.project, environment)

    def told(self):
        """The jobs of this run, as the job server tells of them, the first one first."""
        found = [job for job in self.head.get("/api/jobs/") if f"run_dir={self.run}" in job["entrypoint"].split()]
        return sorted(found, key=lambda job: job["start_time"])

    def check_origins(self, beside=None):
        """The blocks of the job that has ended, and its driver, have our packages from what was sent, all others too.

        `beside`: the process that sends it.
        """
        found = [line.split(" ", 1) for line in self.imports.read_text().splitlines()]
        own = [(int(pid), origin) for pid, origin in found if int(pid) != beside]
        blocks = {block["pid"] for block in read_status(self.run)["blocks"]}
        assert len(blocks) == 2 and blocks < {pid for pid, _ in own}, "the driver has them, too"
        assert all(origin.startswith(str(self.head.folder)) for _, origin in own), own


def following(command, folder, environment):
    """Start a command that submits a job and follows it to its end."""
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def zip_checkout(archive, *more):
    """The part of `git archive --prefix=unlocked/` that a job runs, and files beside it."""
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as packed:
        for folder in ("actors", "orchestrator", "configs"):
            for path in (ROOT / folder).rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    packed.write(path, Path("unlocked", path.relative_to(ROOT)))
        for path in more:
            packed.write(path, Path("unlocked", path.name))


def read_status(run):
    path = Path(run) / "status.json"
    return json.loads(path.read_text()) if path.exists() else {"batch": 0, "blocks": []}


def read_summary(run):
    return json.loads((Path(run) / "summary.json").read_text())


def served_by(head):
    """Our measures at the addresses that Ray's head lists for Prometheus; none while there is no list."""
    path = head.folder / "ray" / FOUND_BY_PROMETHEUS.name
    listed = json.loads(path.read_text()) if path.exists() else []
    found = set()
    for target in (target for group in listed for target in group["targets"]):
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as got:
            found |= set(re.findall(r"^(ray_unlocked_\w+)\{", got.read().decode(), re.M))
    return found


@pytest.mark.timeout(400)
def test_a_job_that_is_stopped_midway_and_submitted_again_has_the_weights_of_an_undisturbed_run(head, tmp_path):
    jobs = Jobs(head, tmp_path)
    jobs.dawdle.touch()
    with jobs.submit_with_script() as script:
        head.wait(lambda: read_status(jobs.run)["batch"] >= 5, "the fifth batch", JOB_DEADLINE_S)
        head.wait(lambda: served_by(head) == MEASURES, "what Prometheus reads", JOB_DEADLINE_S)
        [told] = jobs.told()
        stopped_s = time.time()
        head.stop_job(told["submission_id"])
        output, _ = script.communicate(timeout=JOB_DEADLINE_S)
    jobs.dawdle.unlink()
    [told] = jobs.told()
    assert told["status"] == "STOPPED", output
    assert told["end_time"] / 1000 - stopped_s > RAY_STOPS_WITHIN_S, "it would have ended in time anyway"
    summary = read_summary(jobs.run)
    assert summary["status"] == "stopped"
    [stopped_at] = {block["version"] for block in summary["blocks"]}
    assert stopped_at >= 5
    jobs.check_origins()

    with jobs.submit_from_clean_folder() as command:
        output, _ = command.communicate(timeout=JOB_DEADLINE_S)
    assert command.returncode == 0 and f"results in {jobs.run}" in output, output
    told = jobs.told()[1]
    assert told["status"] == "SUCCEEDED"
    assert told["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_WAIT_S)
    jobs.check_origins(beside=command.pid)
    summary = read_summary(jobs.run)
    resumed = next(event for event in summary["events"] if event["event"] == "resumed")
    assert resumed["position"] == stopped_at - 2, "a stopped run goes on from the batch before its last one"
    assert summary["status"] == "completed" and summary["epochs"] == 4 and summary["test_accuracy"] > 0.5
    words = [*SHORT, f"run_dir={tmp_path / 'undisturbed'}", "placement.backend=in_process"]
    config = load_config([ROOT / "configs" / "quickstart.yaml"], words, find_catalog())
    assert summary["weights_sha256"] == train(config, progress=False).weights_sha256


def test_without_the_token_nothing_is_accepted(head, tmp_path, capsys, monkeypatch):
    assert head.status_code("/api/jobs/", token=None) == 401
    assert head.status_code("/api/jobs/", token="0" * 32) == 403
    assert head.status_code("/api/jobs/", token="own") == 200
    before = {job["submission_id"] for job in head.get("/api/jobs/")}
    assert head.status_code("/api/jobs/", token=None, body={"entrypoint": "true"}) == 401
    where = {"RAY_API_SERVER_ADDRESS": head.address, "WORKING_DIR": str(tmp_path)}
    with following([str(ROOT / "deploy" / "submit.sh")], "/", head.environment(token=False) | where) as script:
        output, _ = script.communicate(timeout=JOB_DEADLINE_S)
    assert script.returncode != 0 and "token" in output.lower(), output
    assert {job["submission_id"] for job in head.get("/api/jobs/")} == before, "one was accepted"
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "configs" / "quickstart.yaml", tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["submit", "quickstart.yaml", "run_dir=/shared/runs/x", "--address", head.address])
    written = capsys.readouterr().err
    assert ended.value.code == 2 and written.count("\n") == 1
    assert "refuses this user" in written and "RAY_AUTH_TOKEN" in written


@pytest.mark.parametrize(
    "given",
    [{}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}],
    ids=["not asked for", "none", "another"],
)
def test_training_on_a_cluster_without_its_token_is_refused_in_one_sentence(head, tmp_path, given):
    command = ["train", str(ROOT / "configs" / "quickstart.yaml"), f"run_dir={tmp_path / 'run'}"]
    here = {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": f"127.0.0.1:{head.port}"}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *command], env=head.environment(token=False) | here | given,
        capture_output=True, text=True, timeout=JOB_DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(f"unlocked: RAY_ADDRESS: the cluster at '127.0.0.1:{head.port}' refuses this user")
    assert "RAY_AUTH_MODE=token" in line and "RAY_AUTH_TOKEN" in line


def test_the_probes_of_the_manifests_answer_without_the_token(head):
    for group in groups(training_job()):
        container = group["template"]["spec"]["containers"][0]
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == AGENT_PORT
            assert head.status_code(asked["path"], token=None, port=head.agent_port) == 200
