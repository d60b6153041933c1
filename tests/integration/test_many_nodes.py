"""More blocks than nodes: every edge, and the error that a method sends to all blocks, goes from node to node."""

import itertools
import json

import pytest

from tests.integration.test_nodes import Training
from tests.runs import Replacing, run

NODES, BLOCKS = 3, 8
CHAIN = {
    "network": Replacing(name="mlp", widths=[12, 11, 10, 9, 8, 7, 6], blocks=BLOCKS),
    "rule": {"name": "direct_feedback_alignment"},
    "training": {"epochs": 3},
}
pytestmark = [pytest.mark.hosts, pytest.mark.timeout(300)]


@pytest.fixture
def named_nodes():
    """Nodes that are told apart by a resource each."""
    cluster = pytest.importorskip("ray.cluster_utils").Cluster()
    try:
        for index in range(NODES):
            cluster.add_node(num_cpus=4, resources={f"node{index}": BLOCKS}, object_store_memory=80 * 1024**2)
        yield cluster
    finally:
        cluster.shutdown()


def test_eight_blocks_over_three_nodes_learn_what_they_would_in_one_process(named_nodes, tmp_path):
    blocks = {index: {"resources": {f"node{index % NODES}": 1}} for index in range(BLOCKS)}
    placement = {"backend": "ray", "cpus_per_block": 0.1, "blocks": blocks}
    training = Training(named_nodes, tmp_path, placement=placement, **CHAIN)
    nodes = [block["node"] for block in training.blocks()]
    assert len(set(nodes)) == NODES and all(a != b for a, b in itertools.pairwise(nodes))
    summary = json.loads((training.folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["weights_sha256"] == run(tmp_path / "alone", **CHAIN).weights_sha256
