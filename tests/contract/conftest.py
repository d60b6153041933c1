"""Fixtures of the contract tests: every test that asks for `carrier` runs over each of them."""

import sys

import pytest

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


@pytest.fixture(params=["in_process", "same_process", "socket", "ray"])
def carrier(request):
    """Makes producers, each on a fresh edge; all are closed when the test ends."""
    if request.param == "ray":
        made = carriers.RayCarrier(request.getfixturevalue("warm_outboxes"))
    else:
        kinds = {
            "in_process": carriers.InProcessCarrier,
            "same_process": carriers.SameProcessCarrier,
            "socket": carriers.SocketCarrier,
        }
        made = kinds[request.param]()
    yield made
    made.close()
