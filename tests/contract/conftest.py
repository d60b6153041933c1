"""Fixtures of the contract tests: every test that asks for `carrier` runs over each of them."""

import importlib.util
import sys

import pytest

from actors.transport import direct
from tests.contract import carriers


@pytest.fixture(scope="session")
def warm_outboxes(ray_session):
    """The one Ray actor that serves every test's edges."""
    ray_session.cloudpickle.register_pickle_by_value(sys.modules[carriers.__name__])
    groups = {"io": 8, "control": 1}
    actor = ray_session.remote(concurrency_groups=groups)(carriers.Outboxes).options(num_cpus=0).remote()
    ray_session.get(actor.set_version.remote(0), timeout=100)  # its process imports torch
    yield actor
    ray_session.kill(actor)


@pytest.fixture(scope="session")
def warm_direct(ray_session):
    """The same, of a process whose memory others can fetch from; this process is one of those."""
    if importlib.util.find_spec("nixl") is None:
        pytest.skip("NIXL is not installed")
    ray_session.cloudpickle.register_pickle_by_value(sys.modules[carriers.__name__])
    options = {"concurrency_groups": {"io": 8, "control": 1}, "enable_tensor_transport": True}
    actor = ray_session.remote(**options)(carriers.Outboxes).options(num_cpus=0).remote()
    ray_session.get(actor.prepare.remote(), timeout=100)
    direct.prepare("cpu")
    yield actor
    ray_session.kill(actor)


@pytest.fixture(params=["in_process", "same_process", "socket", "ray", "direct"])
def carrier(request):
    """Makes producers, each on a fresh edge; all are closed when the test ends."""
    if request.param == "ray":
        made = carriers.RayCarrier(request.getfixturevalue("warm_outboxes"))
    elif request.param == "direct":
        made = carriers.DirectCarrier(request.getfixturevalue("warm_direct"))
    else:
        kinds = {
            "in_process": carriers.InProcessCarrier,
            "same_process": carriers.SameProcessCarrier,
            "socket": carriers.SocketCarrier,
        }
        made = kinds[request.param]()
    yield made
    made.close()
