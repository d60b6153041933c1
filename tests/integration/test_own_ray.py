"""The Ray that this process has started on its machine: what it lacks, who may reach it, what its spares see."""

import pytest

from actors.errors import UserError
from orchestrator.cluster import ray_bundles
from orchestrator.cluster.contract import Request


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"resources": {"microscope": 2}}, "placement.resources: 2 actors ask for 4 microscope, the cluster has 0"),
        ({"labels": {"rack": "z"}}, "placement.labels: no node of the cluster has {'rack': 'z'}"),
        ({"labels": {"rack": "in(y, z)"}}, "placement.labels: no node of the cluster has {'rack': 'in(y, z)'}"),
        ({"gpus": 1.0}, "placement.gpus_per_block: 2 actors ask for 2 GPU, the cluster has 0"),
    ],
)
def test_what_this_machine_s_own_ray_lacks_is_refused_at_once(ray_session, asked, words):
    requests = [Request((name,), 0.1, **asked) for name in ("block0", "block1")]
    with pytest.raises(UserError, match=r"(lower|change) it or add nodes") as refused:
        ray_bundles.reserve(requests, "PACK", wait_s=60, is_own=True)
    assert words in str(refused.value)


def test_this_machine_s_own_ray_has_no_node_for_each_actor(ray_session):
    requests = [Request((name,), 0.1) for name in ("block0", "block1")]
    with pytest.raises(UserError, match="STRICT_SPREAD, a node for each of 2 actors, and the cluster has 1; choose"):
        ray_bundles.reserve(requests, "STRICT_SPREAD", wait_s=60, is_own=True)
    group = ray_bundles.reserve(requests, "STRICT_PACK", wait_s=60, is_own=True)
    ray_session.util.remove_placement_group(group)


def test_this_machine_s_own_ray_refuses_whoever_has_no_token(ray_session):
    grpc, session = pytest.importorskip("grpc"), pytest.importorskip("orchestrator.cluster.ray_session")
    address = ray_session.get_runtime_context().gcs_address
    channel = grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])
    with channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(session.FIRST_CALL)(b"", timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_spare_is_asked_what_it_sees_like_every_other_process(ray_cluster, tmp_path, monkeypatch):
    module = pytest.importorskip("orchestrator.cluster.ray_cluster")
    monkeypatch.setattr(module, "refusal", lambda name, *_: "it sees nothing" if name == "spare 0" else None)
    ray_cluster.start([Request(("block0",), 0.1)], spares=1)
    try:
        with pytest.raises(UserError, match="it sees nothing"):
            ray_cluster.check(tmp_path)
    finally:
        ray_cluster.close()
