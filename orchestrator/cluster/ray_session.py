"""Connects this process to a Ray cluster, or starts one on this machine."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray import exceptions
from ray._private import worker

from actors.errors import UserError
from orchestrator.job_directory import JOB

CONNECT_DEADLINE_S = 10.0
LAST_PORT = 65535
FIRST_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""Asks for nothing that a client with the token may not know."""


def init_ray(object_store_bytes: int | None) -> None:
    """Connect to the cluster at RAY_ADDRESS, or start one here.

    Args:
        object_store_bytes: size of a local cluster's object store; None lets Ray choose.

    Raises:
        UserError: RAY_ADDRESS is no address of a head, no cluster answers there, or it wants another token or runs
            other versions.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    local: dict[str, Any] = {}
    if address == "local":
        local = {
            "include_dashboard": False,
            "num_cpus": os.cpu_count(),
            "object_store_memory": object_store_bytes,
        }
    _check_answers(address)
    environment = _worker_environment() if local else new_variables()
    since = time.monotonic()
    try:
        # A local cluster inherits the environment; one that runs is asked to set it, which its workers wait for.
        with _inherited(environment if local else {}):
            ray.init(
                address=address, namespace="unlocked", log_to_driver=False, configure_logging=True,
                logging_level=logging.ERROR, runtime_env=None if local else {"env_vars": environment}, **local,
            )  # fmt: skip
    except exceptions.AuthenticationError as error:
        raise _refused(address, error.message) from None
    except (ConnectionError, TimeoutError) as error:
        raise UserError(
            f"RAY_ADDRESS: no Ray cluster answers at {address!r} after {time.monotonic() - since:.0f} s "
            f"({first_line(error)}); check the address, or unset it to run on this machine"
        ) from None
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        facts = " ".join(str(error).split())
        raise UserError(
            f"RAY_ADDRESS: the cluster at {address!r} runs other versions ({facts}); install the same Ray and Python "
            f"here and there"
        ) from None


def is_own_ray() -> bool:
    """Return whether this process has started the Ray that it is connected to: no node will ever be added to it."""
    return bool(getattr(getattr(worker, "_global_node", None), "head", False))


def _check_answers(address: str) -> None:
    """Ray asks for half a minute, and tells of it in many lines; a port that refuses is known at once.

    What Ray takes for an address of another kind would end in its own error, or in a client that does not train.
    """
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > LAST_PORT or "/" in host:
        raise UserError(
            f"RAY_ADDRESS: got {address!r}, expected HOST:PORT of a cluster's head, such as 10.0.0.1:6379, or auto; "
            f"unset it to run on this machine, or give a job server's address to unlocked submit --address"
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_DEADLINE_S).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS: nothing answers at {address} ({error.strerror or error}); check the address, or unset it to "
            f"run on this machine"
        ) from None
    _check_token(address)


def _check_token(address: str) -> None:
    """Ray asks for 20 s, tells of each time, and says in the end that nobody answers.

    A Ray that makes its channels another way is left to do so.
    """
    import grpc

    try:
        from ray._private.grpc_utils import init_grpc_channel
    except ImportError:
        return
    channel: Any = init_grpc_channel(address, [("grpc.enable_http_proxy", 0)])
    with channel:
        try:
            channel.unary_unary(FIRST_CALL)(b"", timeout=CONNECT_DEADLINE_S)
        except exceptions.AuthenticationError as error:
            raise _refused(address, error.message) from None
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise _refused(address, str(error.details())) from None


def _refused(address: str, why: str) -> UserError:
    return UserError(
        f"RAY_ADDRESS: the cluster at {address!r} refuses this user ({' '.join(why.split())}); set RAY_AUTH_MODE=token "
        f"and put the cluster's token into RAY_AUTH_TOKEN, or into ~/.ray/auth_token"
    )


def new_variables() -> dict[str, str]:
    """Return what the job that this process belongs to does not set for its workers already.

    Ray refuses to be told of one variable by the job and by its driver.
    """
    job = json.loads(os.environ.get(JOB) or "{}")
    known = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in _worker_environment().items() if name not in known}


_KEEP_MEMORY: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26),
}  # fmt: skip
"""glibc keeps the memory of a step for the next one; giving it back costs a block 5 to 10 % of its time."""


def _worker_environment() -> dict[str, str]:
    """Workers find the packages as this process does; bfloat16 on some CPUs needs its instruction set named."""
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    names = ("ONEDNN_MAX_CPU_ISA", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {name: os.environ.get(name, value) for name, value in _KEEP_MEMORY.items()}
    return environment | (
        {"PYTHONPATH": os.pathsep.join([os.getcwd(), *paths])} if "RAY_ADDRESS" not in os.environ else {}
    )


@contextmanager
def _inherited(environment: Mapping[str, str]) -> Iterator[None]:
    """Let processes that are started in the body of a `with` have these variables."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def first_line(error: Exception) -> str:
    """Return what an error says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
