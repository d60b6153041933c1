"""`unlocked submit` before anything runs: what is refused, what is sent. The job: tests/integration/test_submit.py."""

import http.server
import shutil
import socket
import threading
import zipfile
from pathlib import Path

import pytest

from actors.errors import UserError
from orchestrator import submit
from orchestrator.cli import main
from orchestrator.job_directory import JOB, RUNS, run_dir_in_job
from tests.conftest import ROOT

SMALL = """
data: {name: generated, shape: [1, 4, 4], classes: 3, size: 24, test_size: 6, batch_size: 8}
network: {name: mlp, widths: [8], blocks: 2}
placement: {backend: in_process}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of the user's with a config, and no variable that says where jobs go."""
    shutil.copy(ROOT / "configs" / "quickstart.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_API_SERVER_ADDRESS", RUNS):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refused(capsys, *arguments):
    """Return the one sentence that `unlocked submit` ends with."""
    with pytest.raises(SystemExit) as ended:
        main(["submit", *arguments])
    written = capsys.readouterr().err
    assert ended.value.code == 2, written
    assert written.startswith("unlocked: ") and written.count("\n") == 1, written
    return written


@pytest.fixture
def closed_port():
    """A port of loopback where nothing listens, and nobody can start to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def other_server():
    """A server that is no job server of Ray."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(10)
    server.server_close()


class Silent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>something else</html>")

    def log_message(self, format, *args):
        pass


def test_an_address_where_nothing_answers_is_refused_with_the_way_out(project, capsys, closed_port):
    address = f"http://127.0.0.1:{closed_port}"
    message = refused(capsys, "quickstart.yaml", "run_dir=/shared/runs/x", "--address", address)
    assert f"nothing answers at {address}" in message and "ssh -L" in message


def test_a_server_that_is_no_ray_is_refused(project, capsys, other_server):
    message = refused(capsys, "quickstart.yaml", "run_dir=/shared/runs/x", "--address", other_server)
    assert f"{other_server} is no job server of Ray" in message


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "127.0.0.1:8265", "auto", "http://", "http://host:port"])
def test_an_address_of_another_kind_is_refused(project, capsys, address):
    message = refused(capsys, "quickstart.yaml", "run_dir=/shared/runs/x", "--address", address)
    assert f"--address: got {address!r}, expected" in message


def test_a_mistake_in_the_config_is_found_before_the_cluster_is_asked(project, capsys, closed_port):
    address = f"http://127.0.0.1:{closed_port}"
    arguments = ["quickstart.yaml", "run_dir=/shared/runs/x", "--address", address]
    assert "trainig" in refused(capsys, *arguments, "trainig.epochs=3")
    assert "no such config file" in refused(capsys, "nowhere.yaml", "--address", address)
    assert "submit: got no config file" in refused(capsys, "run_dir=/shared/runs/x", "--address", address)


def test_a_config_outside_of_the_folder_that_is_sent_is_refused(project, capsys, closed_port):
    message = refused(capsys, str(ROOT / "configs" / "quickstart.yaml"), "--address", f"http://127.0.0.1:{closed_port}")
    assert "lies outside of" in message and str(project) in message


def test_a_run_directory_that_would_end_with_the_job_is_refused(project, capsys, closed_port):
    message = refused(capsys, "quickstart.yaml", "--address", f"http://127.0.0.1:{closed_port}")
    assert "run_dir: got runs/quickstart" in message
    assert "run_dir=/shared/runs/quickstart" in message and RUNS in message


@pytest.mark.parametrize(
    ("run_dir", "runs", "place"),
    [
        ("/nfs/a", "", "/nfs/a"),
        ("/nfs/a", "/shared/runs", "/nfs/a"),
        ("runs/a/seed-1", "/shared/runs", "/shared/runs/a/seed-1"),
        ("other/a", "/shared/runs", "/shared/runs/other/a"),
        (None, "/shared/runs", "/shared/runs/run"),
    ],
)
def test_the_folder_for_runs_takes_the_place_of_runs(run_dir, runs, place):
    assert str(run_dir_in_job(run_dir, {RUNS: runs})) == place


@pytest.mark.parametrize("runs", ["", "shared/runs"])
def test_a_folder_for_runs_that_is_relative_helps_nobody(runs):
    with pytest.raises(UserError, match="run_dir: got runs/a"):
        run_dir_in_job("runs/a", {RUNS: runs})


class RecordingClient:
    """Stands for the cluster: keeps what it is given."""

    def __init__(self, address):
        RecordingClient.last = self

    def submit(self, entrypoint, runtime_env):
        self.entrypoint, self.runtime_env = entrypoint, runtime_env
        return "a-job"


def test_the_job_s_command_is_the_training_with_its_run_directory_in_full(project, monkeypatch, capsys):
    client = pytest.importorskip("orchestrator.cluster.job_client")
    monkeypatch.setattr(client, "JobClient", RecordingClient)
    monkeypatch.setenv(RUNS, "/shared/runs")
    with pytest.raises(SystemExit) as ended:
        main(["submit", "quickstart.yaml", "seed=[1,2]", "run_dir=runs/two words", "--no-wait", "--fresh"])
    assert ended.value.code == 0, capsys.readouterr().err
    sent = RecordingClient.last
    assert sent.entrypoint == (
        "python -m orchestrator train quickstart.yaml 'seed=[1,2]' 'run_dir=/shared/runs/two words' --fresh"
    )
    assert sent.runtime_env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


def test_the_packages_are_sent_unless_the_folder_holds_them(tmp_path):
    assert "py_modules" not in submit.runtime_env(ROOT)
    sent = submit.runtime_env(tmp_path)["py_modules"]
    assert sorted(Path(path).relative_to(ROOT).as_posix() for path in sent) == ["actors", "orchestrator"]


def test_results_data_and_environments_are_not_sent_and_packages_of_those_names_are(tmp_path):
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    folder = tmp_path / "project"
    kept = ["a.yaml", "mine/rule.py", "mine/data/words.txt", "mine/runs/table.csv"]
    left = ["runs/a/summary.json", "data/images.bin", ".venv/bin/python", ".git/HEAD", "mine/__pycache__/rule.pyc",
            "secret.txt", "large/weights.bin"]  # fmt: skip
    for name in kept + left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / ".gitignore").write_text("secret.txt\n")
    (folder / ".rayignore").write_text("large/\n")
    packed = tmp_path / "packed.zip"
    excludes = submit.runtime_env(folder)["excludes"]
    packaging.create_package(str(folder), packed, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(packed) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert set(kept) <= names and not names & set(left)


def test_the_script_sends_the_packages_and_configs_of_this_checkout_and_no_results_and_environments(tmp_path):
    """`ray job submit --working-dir .`: what .gitignore, .rayignore and Ray itself name stays."""
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    own = pytest.importorskip("ray._private.ray_constants").get_runtime_env_default_excludes()
    packed = tmp_path / "packed.zip"
    packaging.create_package(str(ROOT), packed, include_gitignore=True, excludes=own)
    with zipfile.ZipFile(packed) as archive:
        names = set(archive.namelist())
    sent = {path for folder in ("actors", "orchestrator", "configs") for path in (ROOT / folder).rglob("*.*")}
    sent = {path.relative_to(ROOT).as_posix() for path in sent if "__pycache__" not in path.parts}
    assert "orchestrator/__main__.py" in sent and sent <= names
    assert not {Path(name).parts[0] for name in names} & {".venv", "venv", ".git", "runs", "data", "tests"}
    assert packed.stat().st_size < 10 * 1024**2


def test_ray_s_name_for_the_environment_of_a_job_is_ours():
    constants = pytest.importorskip("ray._private.runtime_env.constants")
    assert constants.RAY_JOB_CONFIG_JSON_ENV_VAR == JOB


def test_inside_a_job_a_training_refuses_a_relative_run_directory_or_writes_below_the_folder_for_runs(
    project, capsys, monkeypatch
):
    (project / "small.yaml").write_text(SMALL)
    monkeypatch.setenv(JOB, "{}")
    with pytest.raises(SystemExit) as ended:
        main(["train", "small.yaml"])
    assert ended.value.code == 2 and "run_dir: got runs/small" in capsys.readouterr().err
    assert not (project / "runs").exists()
    monkeypatch.setenv(RUNS, str(project / "shared"))
    with pytest.raises(SystemExit) as ended:
        main(["train", "small.yaml"])
    assert ended.value.code == 0 and (project / "shared" / "small" / "summary.json").is_file()
