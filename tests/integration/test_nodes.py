"""Blocks on Ray nodes that differ: labels, resources, kinds of GPU, cores; nodes that come late.

The nodes are real, on one machine. What trains is a process of its own, since this one may have a Ray already.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time

import pytest
import yaml

from orchestrator import control
from orchestrator.cluster import ray_bundles
from orchestrator.cluster.contract import Request
from orchestrator.config import resolved
from tests.conftest import ROOT
from tests.integration.test_ending import read_status, wait_until
from tests.runs import config_of, run

DEADLINE_S = 150.0
WAIT_FOR_NODES = ROOT / "deploy" / "slurm" / "wait_for_nodes.py"
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


PLACES = """
import json, sys
import ray
from orchestrator.cluster.contract import Request
from orchestrator.cluster.ray_cluster import RayCluster

ray.init(address="auto", namespace="unlocked", log_to_driver=False, logging_level="ERROR")

def place(_):
    return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

for strategy, asked in json.loads(sys.argv[1]):
    cluster = RayCluster(strategy=strategy, wait_s=60)
    cluster.start([Request((f"block{index}",), **one) for index, one in enumerate(asked)])
    hosts = cluster._hosts.values()
    print(json.dumps(ray.get([host.__ray_call__.remote(place) for host in hosts], timeout=100)), flush=True)
    cluster.close()
"""
"""Reserves for several runs, one after another; says the node and the GPUs of every process."""


def places_of(cluster, *runs, strategies=()):
    """For each run, the node and the GPUs of every process, given what each asks for."""
    done = run_python(cluster, PLACES, json.dumps(list(zip(strategies or ["PACK"] * len(runs), runs, strict=True))))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(runs)
    return found


def run_python(cluster, code, *words):
    """Run a program beside the nodes to its end."""
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, timeout=DEADLINE_S,
        check=False,
    )  # fmt: skip


def test_neighbours_share_a_node_in_chain_order_and_kinds_labels_and_parts_of_a_gpu_are_found(nodes):
    head, special = [node.node_id for node in nodes.list_all_nodes()]
    with_gpu = add_node(nodes, num_gpus=1, labels={"rack": "g"})
    try:
        kind, one_of, not_b, gpus = places_of(
            nodes,
            [{"cpus": 1, "accelerator_type": "A100"}] * 2,
            [{"cpus": 1, "labels": {"rack": "in(a,b)"}}] * 2,
            [{"cpus": 1, "labels": {"rack": "!in(b,g)"}}] * 2,
            [{"cpus": 1, "gpus": 0.5}, {"cpus": 1}, {"cpus": 1, "gpus": 0.5}],
        )
    finally:
        nodes.remove_node(with_gpu)
    assert [node for node, _ in kind] == [special, special] and [node for node, _ in one_of] == [special, special]
    assert [node for node, _ in not_b] == [head, head]
    assert [gpus[0], gpus[2]] == [[with_gpu.node_id, [0]]] * 2, "halves of one GPU"
    assert gpus[1][1] == []


def test_neighbours_are_packed_in_chain_order(nodes):
    """Two nodes hold two blocks each, whether all ask for the same or not; the source comes with the first ones."""
    source = {"cpus": 0.01}
    runs = [
        [source, *({"cpus": cpus} for cpus in blocks)] for blocks in ((1.9,) * 4, (1, 2.9, 2.9, 1), (2.9, 1, 1, 2.9))
    ]
    for places in places_of(nodes, *runs):
        of_source, a, *others = [node for node, _ in places]
        assert of_source == a and others[0] == a and others[1] == others[2] != a


def test_a_strict_strategy_is_kept_to(nodes):
    two = [{"cpus": 1}] * 2
    packed, spread = places_of(nodes, two, two, strategies=("STRICT_PACK", "STRICT_SPREAD"))
    assert len({node for node, _ in packed}) == 1 and len({node for node, _ in spread}) == 2


CPUS = """
import json
import ray
from orchestrator.cluster.ray_cluster import RayCluster

cluster = RayCluster()
shares = [cluster.cpus_for(num_blocks, 0.01) for num_blocks in (4, 16)]
ray.cluster_resources = lambda: {"memory": 1.0}  # a head without CPUs, whose workers have not come
print(json.dumps([*shares, cluster.cpus_for(4, 0.01)]))
"""


def test_blocks_share_out_the_cpus_that_are_there_and_ask_for_one_each_where_there_are_none_yet(nodes):
    done = run_python(nodes, CPUS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1.0, 0.499, 1.0]


def test_each_block_goes_where_it_asks_to_and_a_node_that_is_missing_is_waited_for_aloud(nodes, tmp_path):
    own = {0: {"labels": {"rack": "in(a,b)"}}, 1: {"resources": {"microscope": 1}, "cpus": 2,
           "accelerator_type": "A100"}, 2: {"labels": {"rack": "c"}, "cpus": 0.5}}  # fmt: skip
    placement = {"backend": "ray", "cpus_per_block": 1, "pin_cpus": True, "threads": 1, "blocks": own}
    training = Training(nodes, tmp_path, placement=placement)
    line = training.line_with("waiting for resources since 3 s")
    assert "asked are 3.51 CPU + 0.001 accelerator_type:A100 + 1 microscope in 4 bundles (PACK), on nodes " in line
    assert "on nodes labelled {'rack': 'c'} or {'rack': 'in(a,b)'}; the" in line
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


LASTING = {"training": {"epochs": 15}, "evaluation": {"every_epochs": 0}}


def rebalancing(nodes, folder, spares, **placement):
    """A training that is through its twentieth batch, and the node of each block."""
    placement = {"backend": "ray", "rebalance": True, **placement}
    slow = {"faults": {"pad": 12}, "checkpoint": {"every_s": 600}, "recovery": {"spares": spares}}
    training = Training(nodes, folder, placement=placement, **LASTING, **slow)
    wait_until(lambda: training.status()["batch"] > 20, "the twentieth batch")
    return training, {block["name"]: block["node"] for block in training.status()["blocks"]}


def check_return(nodes, training, name, lost):
    """Lose a block's node and add another: it goes there once, and nowhere else; return where the blocks end."""
    nodes.remove_node(lost, allow_graceful=False)
    training.line_with(f"{name} is back after")
    control.ask(str(training.folder), ["pause"])
    late = add_node(nodes)
    try:
        wait_until(lambda: training.events("astray"), "a place on the node that came")
        control.ask(str(training.folder), ["resume"])
        where = {block["name"]: block["node"] for block in training.blocks()}
    finally:
        nodes.remove_node(late)
    assert [each for each, node in where.items() if node == late.node_id] == [name]
    for kind in ("lost", "moved"):
        actors = [event["actor"] for event in training.events(kind)]
        assert sorted(actors) in ([name], [name, "source"]), (kind, "Ray may have put the source there, too")
    summary = json.loads((training.folder / "summary.json").read_text())
    assert summary["weights_sha256"] == run(training.folder.parent / "alone", **LASTING).weights_sha256
    return where


@pytest.mark.hosts
def test_the_block_of_a_lost_node_crowds_elsewhere_and_moves_to_the_node_that_comes(nodes, tmp_path):
    """Three CPUs a block: one on each of three nodes of four, so the two that are left have no room for a third.

    A spare process takes its place at first, and none when it moves.
    """
    third = add_node(nodes)
    training, on = rebalancing(nodes, tmp_path, spares=1, cpus_per_block=3)
    [name] = [name for name, node in on.items() if node == third.node_id]
    check_return(nodes, training, name, third)


@pytest.mark.hosts
def test_a_block_that_found_room_beside_another_moves_to_the_node_that_comes(nodes, tmp_path):
    """Four nodes hold the source and three blocks, one each; every node has room for all."""
    more = [add_node(nodes), add_node(nodes)]
    try:
        training, on = rebalancing(nodes, tmp_path, spares=0, cpus_per_block=1, strategy="SPREAD")
        name, lost = next((name, node) for name, at in on.items() for node in more if node.node_id == at)
        more.remove(lost)
        where = check_return(nodes, training, name, lost)
    finally:
        for node in more:
            nodes.remove_node(node)
    assert len(set(on.values())) == len(set(where.values())) == 3
    assert [each for each in on if on[each] != where[each]] == [name], "the others have stayed"


@pytest.mark.hosts
@pytest.mark.parametrize("left_s", [None, 90], ids=["without a deadline", "with a deadline"])
def test_a_node_that_is_drained_is_left_after_a_snapshot_whether_or_not_it_says_when_it_ends(nodes, tmp_path, left_s):
    raylet, messages = pytest.importorskip("ray._raylet"), pytest.importorskip("ray.core.generated.autoscaler_pb2")
    reason = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    third = add_node(nodes)
    try:
        training = Training(
            nodes, tmp_path, training={"epochs": 12}, evaluation={"every_epochs": 0}, faults={"pad": 40},
            checkpoint={"every_s": 600}, recovery={"max_failures": 0},
            placement={"backend": "ray", "cpus_per_block": 3},
        )  # fmt: skip
        wait_until(lambda: training.status()["batch"] >= 10, "the tenth batch")
        [on_third] = [block["name"] for block in training.status()["blocks"] if block["node"] == third.node_id]
        ends_at_ms = 0 if left_s is None else int((time.time() + left_s) * 1000)
        accepted, why = raylet.GcsClient(address=nodes.address).drain_node(third.node_id, reason, "test", ends_at_ms)
        assert accepted, why
        where = {block["name"]: block["node"] for block in training.blocks()}
    finally:
        nodes.remove_node(third, allow_graceful=False)
    assert where[on_third] != third.node_id
    moved = {event["actor"]: event["position"] for event in training.events("moved")}
    assert on_third in moved and moved.keys() <= {on_third, "source"}, "Ray may have put the source there, too"
    assert moved[on_third] > 0 and moved[on_third] in [event["position"] for event in training.events("checkpoint")]
    [drain] = training.events("drain")
    assert drain["left_s"] == pytest.approx(left_s or 60, abs=10)


@pytest.mark.hosts
def test_a_block_that_needs_what_only_a_lost_node_had_waits_for_another_one_aloud(nodes, tmp_path):
    """Three CPUs a block: the others are on the two nodes that stay."""
    third = add_node(nodes, resources={"telescope": 1})
    training = Training(
        nodes, tmp_path, training={"epochs": 8}, evaluation={"every_epochs": 0}, faults={"pad": 10},
        placement={"backend": "ray", "cpus_per_block": 3, "blocks": {1: {"resources": {"telescope": 1}}}},
    )  # fmt: skip
    wait_until(lambda: training.status()["batch"] >= 5, "the fifth batch")
    nodes.remove_node(third, allow_graceful=False)
    line = training.line_with("waiting for resources since ")
    assert "asked are 3 CPU + 1 telescope for block1 to go on; the cluster has " in line and "_group_" not in line
    fourth = add_node(nodes, resources={"telescope": 1})
    try:
        assert training.blocks()[1]["node"] == fourth.node_id
    finally:
        nodes.remove_node(fourth)
    assert [event["actor"] for event in training.events("lost")].count("block1") == 1, "waiting is no failure"


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
    ("change", "got"),
    [
        ("import ray; ray.__version__ = '1.0.0'", "1.0.0"),
        (
            "import sys, collections; V = collections.namedtuple('V', 'major minor micro releaselevel serial'); "
            "sys.version_info = V(3, 11, 99, 'final', 0)",
            "3.11.99",
        ),
    ],
    ids=["Ray", "Python"],
)
def test_a_cluster_of_another_version_is_refused(nodes, tmp_path, change, got):
    code = f"import sys; {change}; from orchestrator.cli import main; main(sys.argv[1:])"
    words = ["train", str(ROOT / "configs" / "quickstart.yaml"), f"run_dir={tmp_path / 'run'}"]
    done = run_python(nodes, code, *words)
    [line] = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert line.startswith(f"unlocked: RAY_ADDRESS: the cluster at '{nodes.address}' runs other versions")
    assert got in line and "install the same Ray and Python" in line


def test_slurm_s_script_waits_for_nodes_and_says_how_many_have_not_come(nodes, closed_port):
    environment = {**os.environ, "RAY_ADDRESS": nodes.address}
    subprocess.run([sys.executable, WAIT_FOR_NODES, "2"], env=environment, timeout=DEADLINE_S, check=True)
    wait = "import os; from deploy.slurm.wait_for_nodes import wait_for_nodes; wait_for_nodes({}, {}, 0.1)"
    few = run_python(nodes, wait.format(9, "os.environ['RAY_ADDRESS']"))
    assert few.returncode == 1 and f"2 of 9 nodes have joined {nodes.address} after 0 s" in few.stderr
    none = run_python(nodes, wait.format(1, f"'127.0.0.1:{closed_port}'"))
    assert none.returncode == 1 and f"no Ray head answers at 127.0.0.1:{closed_port} after 0 s" in none.stderr
