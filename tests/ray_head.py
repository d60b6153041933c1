"""A Ray head of a test's own: job server on loopback, token authentication, ports and folder that nobody else has."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

START_DEADLINE_S = 110.0
END_DEADLINE_S = 30.0
POLL_S = 0.2


class RayHead:
    """Started by `start`, ended by `end`, which ends what it started and nothing else."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="unlocked-head-", dir="/tmp"))  # Ray's socket names must stay short
        self.token = uuid.uuid4().hex
        self.port, self.dashboard_port, self.client_port, self.agent_port = _free_ports(4)
        self.address = f"http://127.0.0.1:{self.dashboard_port}"
        self.log = self.folder / "head.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={self.port}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={self.client_port}", f"--dashboard-agent-listen-port={self.agent_port}",
            "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=8", "--object-store-memory=200000000",
            f"--temp-dir={self.folder / 'ray'}", "--disable-usage-stats",
        ]  # fmt: skip
        environment = self.environment() | {
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_worker_niceness": "0",
        }
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.wait(lambda: self.get("/api/version") is not None, "the head", START_DEADLINE_S)
        self.wait(self._takes_jobs, "the head's agent, without which no job is taken", START_DEADLINE_S)

    def _takes_jobs(self) -> bool:
        try:
            return self._ask("POST", "/api/jobs/", None, "own", {"entrypoint": "true"}) is not None
        except urllib.error.HTTPError:
            return False

    def end(self) -> None:
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(END_DEADLINE_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the session that `start` made
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self, *, token: bool = True) -> dict[str, str]:
        """The variables of a process beside this head: no path of this checkout, and a home that holds no token."""
        foreign = ("PYTHONPATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
        plain = {
            name: value
            for name, value in os.environ.items()
            if name not in foreign and not name.startswith("RAY_AUTH") and not name.startswith("UNLOCKED")
        }
        plain |= {"HOME": str(self.folder), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{plain['PATH']}"}
        return plain | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} if token else {})

    def get(self, path: str, *, port: int | None = None, token: str | None = "own") -> Any:
        """The JSON (or text) at a path of the job server; None while nothing answers."""
        return self._ask("GET", path, port, token)

    def stop_job(self, job: str) -> Any:
        return self._ask("POST", f"/api/jobs/{job}/stop", None, "own")

    def status_code(self, path: str, *, token: str | None, port: int | None = None, body: Any = None) -> int:
        """The HTTP status that a request with another token, or none, gets; one with a body asks for a job."""
        try:
            self._ask("GET" if body is None else "POST", path, port, token, body)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def wait(self, holds: Any, what: str, deadline_s: float) -> Any:
        """Wait until `holds()` is true; a head that ended, or the deadline, raises."""
        over = time.monotonic() + deadline_s
        while not (found := holds()):
            ended = self._process is not None and self._process.poll() is not None
            assert not ended and time.monotonic() < over, f"{what} did not come: {self.log.read_text()[-2000:]}"
            time.sleep(POLL_S)
        return found

    def _ask(self, method: str, path: str, port: int | None, token: str | None, body: Any = None) -> Any:
        url = f"http://127.0.0.1:{port or self.dashboard_port}{path}"
        bearer = self.token if token == "own" else token
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers | {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as got:
                text = got.read().decode()
        except urllib.error.HTTPError:
            raise
        except OSError:
            return None
        try:
            return json.loads(text)
        except ValueError:
            return text


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
