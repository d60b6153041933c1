"""What `RAY_ADDRESS` may be, and what a job tells Ray."""

import json

import pytest

from actors.errors import UserError
from orchestrator.cli import main
from orchestrator.job_directory import JOB
from tests.conftest import ROOT


def test_an_address_where_no_cluster_answers_is_refused(monkeypatch, capsys, tmp_path, closed_port):
    ray_cluster = pytest.importorskip("orchestrator.cluster.ray_cluster")
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(SystemExit) as ended:
        main(["train", str(ROOT / "configs" / "quickstart.yaml"), f"run_dir={tmp_path / 'run'}"])
    written = capsys.readouterr().err
    assert ended.value.code == 2 and written.count("\n") == 1
    assert f"RAY_ADDRESS: nothing answers at 127.0.0.1:{closed_port}" in written and "check the address" in written


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "headnode", "127.0.0.1", "127.0.0.1:637900", ""]
)
def test_an_address_of_another_kind_is_refused_in_one_sentence(monkeypatch, address):
    ray_session = pytest.importorskip("orchestrator.cluster.ray_session")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match="expected HOST:PORT of a cluster's head") as refused:
        ray_session.init_ray(None)
    message = str(refused.value)
    assert f"RAY_ADDRESS: got {address!r}" in message and "\n" not in message and "unlocked submit" in message


def test_a_job_s_own_variables_are_not_told_to_ray_twice(monkeypatch):
    ray_session = pytest.importorskip("orchestrator.cluster.ray_session")
    merge = pytest.importorskip("ray.runtime_env.runtime_env")._merge_runtime_env
    own = {"MALLOC_TRIM_THRESHOLD_": "1", "MINE": "2"}
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"working_dir": "x", "env_vars": own}}))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    merged = merge({"env_vars": own}, {"env_vars": ray_session.new_variables()})
    assert merged is not None and own.items() < merged["env_vars"].items()
    monkeypatch.delenv(JOB)
    assert ray_session.new_variables()["MALLOC_TRIM_THRESHOLD_"] == "1"
