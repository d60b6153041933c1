"""A Ray cluster's job server: send a command with its files, follow its log, learn how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from actors.errors import RunError, UserError

CONNECT_DEADLINE_S = 10.0
_PORTS = {"http": 80, "https": 443}
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging", "ray._private.runtime_env.working_dir",
)  # fmt: skip


@dataclass(frozen=True)
class JobEnd:
    """How a job ended: `succeeded`, `failed` or `stopped`; the exit code of its command, if it had one."""

    status: str
    exit_code: int | None
    message: str


class JobClient:
    """A line to the job server at `address`.

    Args:
        address: http:// or https://, host and port.

    Raises:
        UserError: nothing, or no job server of Ray, answers there, or it refuses this user.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        _check_reachable(address)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            with _environment_at(address):
                self._client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise self._without_token(error) from None
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"--address: {address} is no job server of Ray ({_first_line(error)}); give the address of the "
                f"head's dashboard, such as http://127.0.0.1:8265"
            ) from None

    def submit(self, entrypoint: str, runtime_env: Mapping[str, Any]) -> str:
        """Send the files, start the command, and return the job's name.

        Raises:
            UserError: the cluster refuses the files, the command or this user.
        """
        try:
            return self._client.submit_job(entrypoint=entrypoint, runtime_env=dict(runtime_env))
        except AuthenticationError as error:
            raise self._without_token(error) from None
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"submit: {self.address} did not take the job ({_first_line(error)}); what the working directory's "
                f".gitignore or .rayignore names is not sent"
            ) from None

    def follow(self, job: str, write: Callable[[str], None]) -> JobEnd:
        """Pass the job's log on until it ends, and return how it ended.

        Raises:
            RunError: the line to the cluster broke; the job goes on.
        """
        try:
            asyncio.run(self._follow(job, write))
            facts = self._client.get_job_info(job)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            raise RunError(
                f"{self.address}: the line broke ({_first_line(error)}) and the job goes on; see it with: "
                f"ray job logs --address {self.address} --follow {job}"
            ) from None
        if not facts.status.is_terminal():
            raise RunError(f"{self.address}: the log of {job} ended while the job is {facts.status.value.lower()}")
        succeeded = facts.status == JobStatus.SUCCEEDED
        code = 0 if succeeded else facts.driver_exit_code
        return JobEnd(facts.status.value.lower(), code, (facts.message or "").strip())

    async def _follow(self, job: str, write: Callable[[str], None]) -> None:
        async for lines in self._client.tail_job_logs(job):
            write(lines)

    def _without_token(self, error: Exception) -> UserError:
        return UserError(
            f"--address: {self.address} refuses this user ({_first_line(error)}); set RAY_AUTH_MODE=token, and the "
            f"cluster's token in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token"
        )


@contextmanager
def _environment_at(address: str) -> Iterator[None]:
    """Ray prefers the environment's address to its argument, so let them agree."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        os.environ.pop("RAY_API_SERVER_ADDRESS")
        if before is not None:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _check_reachable(address: str) -> None:
    """Ray's own requests have no deadline, so ask the port first."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:  # a port that is no number
        host, port = None, None
    if host is None or port is None:
        raise UserError(f"--address: got {address!r}, expected http:// or https:// and a host; correct it")
    try:
        socket.create_connection((host, port), timeout=CONNECT_DEADLINE_S).close()
    except OSError as error:
        raise UserError(
            f"--address: nothing answers at {address} ({error.strerror or error}); start a cluster there, or open "
            f"the way to it, for example with ssh -L or kubectl port-forward"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
