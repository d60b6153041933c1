"""Hosts with addresses of their own on one machine: network namespaces on a bridge that a test can cut and mend.

The bridge lives in a namespace, too, so nothing is added to the machine's own network. A process of a host reaches
the others through its link and nobody else; its namespace knows every process of the host, for its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import IO, Any

SUBNET = "10.203.77"
END_DEADLINE_S = 30.0
POLL_S = 0.1


class NetworkHosts:
    """Built by `build`, taken down by `end`.

    Args:
        count: hosts; host i has the address 10.203.77.(i + 1).
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._tag = f"ul{uuid.uuid4().hex[:6]}"
        self._switch = f"{self._tag}s"

    def build(self) -> None:
        """Make the namespaces and their links.

        Raises:
            OSError: this system or this user can't; says why.
        """
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for host in range(self.count):
            inside, outside = f"{self._tag}i{host}", self._port(host)
            _ip("netns", "add", self.name(host))
            _ip("link", "add", inside, "netns", self.name(host), "type", "veth",
                "peer", "name", outside, "netns", self._switch)  # fmt: skip
            _ip("-n", self._switch, "link", "set", outside, "master", "bridge", "up")
            _ip("-n", self.name(host), "link", "set", "lo", "up")
            _ip("-n", self.name(host), "address", "add", f"{self.address(host)}/24", "dev", inside)
            _ip("-n", self.name(host), "link", "set", inside, "up")
            # Ray learns its own address from the route to the internet; nobody answers there.
            _ip("-n", self.name(host), "route", "add", "default", "via", f"{SUBNET}.254")

    def name(self, host: int) -> str:
        """The host's namespace."""
        return f"{self._tag}h{host}"

    def address(self, host: int) -> str:
        """The host's address."""
        return f"{SUBNET}.{host + 1}"

    def start(self, host: int, command: list[str], environment: dict[str, str], log: IO[Any]) -> subprocess.Popen[Any]:
        """Start a command in a host; it and its children end with `end` or `power_off`."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name(host), *command],
            env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def processes(self, host: int) -> list[int]:
        """The ids of the host's processes."""
        return [int(pid) for pid in _ip("netns", "pids", self.name(host)).split()]

    def cut(self, host: int) -> None:
        """Take a host's cable out: what is sent is lost, and nobody is told."""
        _ip("-n", self._switch, "link", "set", self._port(host), "nomaster")

    def mend(self, host: int) -> None:
        """Plug it in again."""
        _ip("-n", self._switch, "link", "set", self._port(host), "master", "bridge")

    def delay(self, host: int, *qdisc: str) -> str | None:
        """Add `tc netem` to what a host sends; return why this kernel can't, None if it does."""
        command = ["tc", "-n", self.name(host), "qdisc", "add", "dev", f"{self._tag}i{host}", "root", "netem", *qdisc]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

    def hurry(self, host: int) -> None:
        """Take away what `delay` has added, if it did."""
        command = ["tc", "-n", self.name(host), "qdisc", "del", "dev", f"{self._tag}i{host}", "root"]
        subprocess.run(command, capture_output=True, check=False)

    def power_off(self, host: int) -> None:
        """End every process of a host at once, with no word to anybody: its cable is out meanwhile."""
        self.cut(host)
        until = time.monotonic() + END_DEADLINE_S
        while pids := self.processes(host):
            assert time.monotonic() < until, f"processes of host {host} do not end: {pids}"
            for pid in pids:
                _kill(pid)
            time.sleep(POLL_S)
        self.mend(host)

    def end(self) -> None:
        """End the hosts' processes and remove the namespaces."""
        names = _ip("netns", "list").split()
        for host in range(self.count):
            if self.name(host) in names:
                self.power_off(host)
                _ip("netns", "delete", self.name(host))
        if self._switch in names:
            _ip("netns", "delete", self._switch)

    def _port(self, host: int) -> str:
        return f"{self._tag}p{host}"


def why_not() -> str | None:
    """Return why this machine can't have such hosts, None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    hosts = NetworkHosts(1)
    try:
        hosts.build()
        hosts.cut(0)
        hosts.mend(0)
    except OSError as error:
        return f"no network namespaces here: {error}"
    finally:
        if Path("/run/netns").is_dir():
            hosts.end()
    return None


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _ip(*words: str) -> str:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=END_DEADLINE_S)
    except FileNotFoundError:
        raise OSError("the command ip is missing") from None
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
