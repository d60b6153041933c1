"""One thread, a clean environment, and one Ray with warm hosts for the whole session."""

import os
import socket

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray reads it so

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A cluster whose hosts are kept between runs: a run costs milliseconds instead of process starts."""
    import ray

    from orchestrator.cluster.ray_cluster import RayCluster

    cluster = RayCluster(object_store_bytes=300 * 1024**2, keep=True)
    yield cluster
    ray.shutdown()


@pytest.fixture(scope="session")
def ray_session(ray_cluster: Any) -> Any:
    """The Ray that `ray_cluster` started."""
    import ray

    return ray


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of loopback where nothing listens, and nobody can start to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="session")
def catalog() -> Any:
    from orchestrator.catalog import find_catalog

    return find_catalog()


def pytest_configure(config: pytest.Config) -> None:
    # pytest resets the filters that the packages set: buffers of shared memory are read-only on purpose.
    config.addinivalue_line("filterwarnings", "ignore:The given NumPy array is not writable:UserWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device is visible"))
