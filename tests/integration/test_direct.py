"""Blocks whose large tensors are read from each other's memory learn what they learn through the object store."""

import importlib.util
import sys
import threading

import pytest
import ray

from actors.errors import LostReply, UserError
from actors.transport import direct
from actors.transport.outbox import Take
from orchestrator.cluster.ray_cluster import RayCluster
from tests.contract import carriers
from tests.runs import Replacing, assert_balanced, block_weights, run

HAS_NIXL = importlib.util.find_spec("nixl") is not None
LARGE = {
    "data": {"shape": [2, 16, 16]},
    "network": Replacing(name="cnn", channels=[8, 8, 8], pool_after=[3], blocks=2),
}  # fmt: skip
"""What travels between its blocks has 128 KiB."""
METHODS = {
    "local": {},
    "three blocks": {
        "network": Replacing(name="cnn", channels=[8, 8, 8], pool_after=[3], blocks=3),
        "rule": {"name": "backprop"},
        "schedule": {"delay_per_hop": 1},
    },
    "channels last": {"rule": {"name": "backprop"}, "training": {"channels_last": True}},
}
DIRECT = {"placement": {"device_transport": "rdt"}}
needs_nixl = pytest.mark.skipif(not HAS_NIXL, reason="NIXL is not installed")


@pytest.fixture(scope="module")
def direct_cluster(ray_cluster):
    """Processes whose memory others can fetch from, on the Ray that `ray_cluster` started."""
    cluster = RayCluster(keep=True, is_direct=True)
    yield cluster
    for process in cluster._spare:
        ray.kill(process)


def numbers(cluster):
    """Return, of all processes, how many references were fetched, and how many objects are kept for others."""

    def looked(host):
        from ray.experimental.rdt.util import get_tensor_transport_manager

        return len(direct._BOOKS._fetched), get_tensor_transport_manager("NIXL")._get_num_managed_meta_nixl()

    calls = [process.__ray_call__.options(concurrency_group="control").remote(looked) for process in cluster._spare]
    found = ray.get(calls, timeout=60)
    return [sum(column) for column in zip(*found, strict=True)]


@needs_nixl
@pytest.mark.parametrize("method", METHODS)
def test_tensors_that_are_fetched_change_no_weight(tmp_path, ray_cluster, direct_cluster, method):
    through_store = run(tmp_path / "store", cluster=ray_cluster, **LARGE | METHODS[method])
    got = run(tmp_path / "direct", cluster=direct_cluster, **LARGE | METHODS[method], **DIRECT)
    fetched, _ = numbers(direct_cluster)
    assert fetched > 0, "everything went another way"
    assert block_weights(got) == block_weights(through_store) and got.test_accuracy == through_store.test_accuracy
    assert_balanced(got)
    assert [edge["bytes"] for edge in got.edges] == [edge["bytes"] for edge in through_store.edges]


@needs_nixl
@pytest.mark.parametrize(("mode", "actor"), [("local", "block0"), ("local", "block1"), ("global", "block0")])
def test_a_killed_process_changes_no_weight(tmp_path, direct_cluster, mode, actor):
    method = LARGE | {"rule": {"name": "backprop"}} | {"checkpoint": {"every_batches": 4}, "recovery": {"mode": mode}}
    kills = {"kill": [{"actor": actor, "at": "step", "batch": 11}]}
    got = run(tmp_path / "run", cluster=direct_cluster, **method, **DIRECT, faults=kills)
    here = run(tmp_path / "here", **method)
    assert [event["actor"] for event in got.events if event["event"] == "lost"] == [actor]
    assert block_weights(got) == block_weights(here) and got.test_accuracy == here.test_accuracy
    assert_balanced(got)


@needs_nixl
def test_what_was_taken_and_not_fetched_dies_with_its_producer(ray_session, monkeypatch):
    ray_session.cloudpickle.register_pickle_by_value(sys.modules[carriers.__name__])
    options = {"concurrency_groups": {"io": 4}, "enable_tensor_transport": True, "num_cpus": 0}
    actor = ray_session.remote(**options)(carriers.Outboxes).remote()
    ray.get(actor.prepare.remote(), timeout=60)
    direct.prepare("cpu")
    producer = carriers.DirectCarrier(actor).producer()
    producer.put_numbers(0, 1)
    is_taken, is_dead, real = threading.Event(), threading.Event(), direct.read

    def read(references, device):
        is_taken.set()
        assert is_dead.wait(carriers.DEADLINE_S)
        return real(references, device)

    monkeypatch.setattr(direct, "read", read)
    port, take = producer.port(), Take(producer.edge, (0, 0), -1, -1, 0, limit=2, wait_s=0.0)
    port.request(take)
    assert is_taken.wait(carriers.DEADLINE_S)
    ray.kill(actor)
    port.request(take)
    ends = [carriers.until(lambda: port.collect(carriers.SLICE_S))]
    is_dead.set()
    ends.append(carriers.until(lambda: port.collect(2 * direct.FETCH_DEADLINE_S)))
    assert [type(end) for found in ends for _, end in found] == [ConnectionError, LostReply]


@pytest.mark.skipif(HAS_NIXL, reason="NIXL is installed")
def test_a_node_without_nixl_is_named(tmp_path, direct_cluster):
    with pytest.raises(UserError, match=r"placement\.device_transport: got 'rdt', .*'nixl'.*; install unlocked\[rdt\]"):
        run(tmp_path / "run", cluster=direct_cluster, **LARGE, **DIRECT)
