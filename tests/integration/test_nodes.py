"""Blocks on Ray nodes that differ: labels, resources, kinds of GPU, cores; nodes that come late; bad addresses.

The nodes are real, on one machine. What trains is a process of its own, since this one may have a Ray already.
"""

import json
import os
import queue
import socket
import subprocess
import sys
import threading

import pytest
import yaml

from actors.errors import UserError
from orchestrator import control
from orchestrator.cli import main
from orchestrator.cluster import ray_bundles
from orchestrator.cluster.contract import Request
from orchestrator.config import resolved
from orchestrator.job_directory import JOB
from tests.conftest import ROOT
from tests.integration.test_ending import read_status, wait_until
from tests.runs import config_of, run

DEADLINE_S = 150.0
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def nodes():
    """A node that anything runs on, and one with a label, a resource, and a GPU's kind but no GPU."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 80 * 1024**2}
    )
    try:
        special = {"accelerator_type:A100": 1, "microscope": 1}
        add_node(cluster, labels={"rack": "b"}, resources=special)
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def add_node(cluster, **what):
    return cluster.add_node(num_cpus=4, object_store_memory=80 * 1024**2, **what)


class Training:
    """The command that trains, on the nodes; its lines as they come."""

    def __init__(self, cluster, folder, **sections):
        self.folder = folder / "run"
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(resolved(config_of(self.folder, **sections))))
        environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "train", str(path)],
            env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.lines = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def line_with(self, words):
        """The next line that holds these words."""
        seen = []
        while (line := self.lines.get(timeout=DEADLINE_S)) is not None:
            seen.append(line)
            if words in line:
                return line
        raise AssertionError(f"no line with {words!r}: {seen}")

    def events(self, kind):
        """What has happened in the run, of one kind, so far."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line.get("event") == kind]

    def status(self):
        assert self.process.poll() is None, "it has ended"
        return read_status(self.folder)

    def blocks(self):
        """The blocks of the run that has ended, as its status tells of them."""
        assert self.process.wait(DEADLINE_S) == 0
        return json.loads((self.folder / "status.json").read_text())["blocks"]


def test_each_block_goes_where_it_asks_to_and_a_node_that_is_missing_is_waited_for_aloud(nodes, tmp_path):
    own = {0: {"labels": {"rack": "b"}}, 1: {"resources": {"microscope": 1}, "cpus": 2},
           2: {"labels": {"rack": "c"}, "cpus": 0.5}}  # fmt: skip
    placement = {"backend": "ray", "cpus_per_block": 1, "pin_cpus": True, "threads": 1, "blocks": own}
    training = Training(nodes, tmp_path, placement=placement)
    line = training.line_with("waiting for resources since 3 s")
    assert "asked are 3.51 CPU + 1 microscope in 4 bundles (PACK), on nodes labelled {'rack': 'b'} or {'rack'" in line
    assert "the cluster has 8 CPU" in line and "on 2 nodes labelled rack=b" in line
    late = add_node(nodes, labels={"rack": "c"})
    try:
        blocks = training.blocks()
        b = blocks[0]["node"]
        assert [block["node"] for block in blocks] == [b, b, late.node_id] and b != late.node_id
        assert [len(block["cores"]) for block in blocks].count(1) == min(3, os.cpu_count())
        kept = [block["cores"][0] for block in blocks if len(block["cores"]) == 1]
        assert len(set(kept)) == len(kept), "two blocks on one core"
    finally:
        nodes.remove_node(late)


@pytest.mark.hosts
def test_the_block_of_a_lost_node_crowds_elsewhere_and_moves_to_the_node_that_comes_with_equal_weights(nodes, tmp_path):
    """Three CPUs a block: one on each of three nodes of four, so the two that are left have no room for a third."""
    lasting = {"training": {"epochs": 25}, "evaluation": {"every_epochs": 0}}
    placement = {"backend": "ray", "cpus_per_block": 3, "rebalance": True}
    third = add_node(nodes)
    slow = {"faults": {"pad": 40}, "checkpoint": {"every_s": 600}}
    training = Training(nodes, tmp_path, placement=placement, **lasting, **slow)
    wait_until(lambda: training.status()["batch"] > 20, "the twentieth batch")
    [on_third] = [block["name"] for block in training.status()["blocks"] if block["node"] == third.node_id]
    nodes.remove_node(third, allow_graceful=False)
    training.line_with(f"{on_third} is back after")
    control.ask(str(training.folder), ["pause"])
    fourth = add_node(nodes)
    try:
        wait_until(lambda: training.events("astray"), "a place on the node that came")
        control.ask(str(training.folder), ["resume"])
        where = {block["name"]: block["node"] for block in training.blocks()}
    finally:
        nodes.remove_node(fourth)
    assert [name for name, node in where.items() if node == fourth.node_id] == [on_third]
    lost = [event["actor"] for event in training.events("lost")]  # Ray may have put the source there, too
    assert on_third in lost and sorted(lost) in ([on_third], [on_third, "source"]), "not started on the lost node again"
    moved = [event["actor"] for event in training.events("moved")]
    assert on_third in moved and len(moved) == len(set(moved)) and {*moved} <= {on_third, "source"}
    summary = json.loads((training.folder / "summary.json").read_text())
    assert summary["weights_sha256"] == run(tmp_path / "alone", **lasting).weights_sha256


def test_a_kind_of_gpu_that_never_comes_ends_with_what_was_asked_and_what_is_there(nodes, tmp_path):
    placement = {"backend": "ray", "gpus_per_block": 0.5, "accelerator_type": "A100", "wait_s": 1}
    training = Training(nodes, tmp_path, placement=placement)
    line = training.line_with("unlocked: ")
    assert training.process.wait(DEADLINE_S) == 2
    assert "placement.wait_s: after 1 s nothing was placed: asked are" in line
    assert "1.5 GPU + 0.003 accelerator_type:A100 in 4 bundles" in line and "the cluster has 8 CPU" in line
    assert not (tmp_path / "run").exists(), "nothing has begun"


def test_a_bundle_says_what_its_actor_takes():
    request = Request(("block0",), 2, 0.25, accelerator_type="A100", resources={"microscope": 1})
    assert ray_bundles.bundle(request) == {"CPU": 2, "GPU": 0.25, "accelerator_type:A100": 0.001, "microscope": 1}
    assert not request.is_anywhere and Request(("block0",), 2).is_anywhere


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"resources": {"microscope": 2}}, "placement.resources: 2 actors ask for 4 microscope, the cluster has 0"),
        ({"labels": {"rack": "z"}}, "placement.labels: no node of the cluster has {'rack': 'z'}"),
        ({"gpus": 1.0}, "placement.gpus_per_block: 2 actors ask for 2 GPU, the cluster has 0"),
    ],
)
def test_what_this_machine_s_own_ray_lacks_is_refused_at_once(ray_session, asked, words):
    with pytest.raises(UserError, match="lower it or add nodes") as refused:
        ray_bundles.reserve([Request((name,), 0.1, **asked) for name in ("block0", "block1")], "PACK", wait_s=60)
    assert words in str(refused.value)


@pytest.fixture
def closed_port():
    """A port of loopback where nothing listens, and nobody can start to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_an_address_where_no_cluster_answers_is_refused(monkeypatch, capsys, tmp_path, closed_port):
    ray_cluster = pytest.importorskip("orchestrator.cluster.ray_cluster")
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(SystemExit) as ended:
        main(["train", str(ROOT / "configs" / "quickstart.yaml"), f"run_dir={tmp_path / 'run'}"])
    written = capsys.readouterr().err
    assert ended.value.code == 2 and written.count("\n") == 1
    assert f"RAY_ADDRESS: nothing answers at 127.0.0.1:{closed_port}" in written and "check the address" in written


def test_a_cluster_of_another_ray_is_refused(nodes, tmp_path):
    code = "import sys, ray; ray.__version__ = '1.0.0'; from orchestrator.cli import main; main(sys.argv[1:])"
    words = ["train", str(ROOT / "configs" / "quickstart.yaml"), f"run_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "RAY_ADDRESS": nodes.address, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, timeout=DEADLINE_S,
        check=False,
    )  # fmt: skip
    [line] = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert line.startswith(f"unlocked: RAY_ADDRESS: the cluster at '{nodes.address}' runs other versions")
    assert "1.0.0" in line and "install the same Ray and Python" in line


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
