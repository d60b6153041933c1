"""Wait until that many nodes have joined the Ray cluster at RAY_ADDRESS: python deploy/slurm/wait_for_nodes.py NUM."""

from __future__ import annotations

import os
import socket
import sys
import time

DEADLINE_S = 120.0
LOOK_EVERY_S = 0.5


def wait_for_nodes(num_nodes: int, address: str, deadline_s: float = DEADLINE_S) -> None:
    """Return once they are there; end the process with one sentence if they are not in time."""
    over = time.monotonic() + deadline_s
    while not _answers(address):
        _give_up_after(over, f"no Ray head answers at {address}", deadline_s)
    import ray

    ray.init(address=address, log_to_driver=False)
    while (alive := sum(node["Alive"] for node in ray.nodes())) < num_nodes:
        _give_up_after(over, f"{alive} of {num_nodes} nodes have joined {address}", deadline_s)
    ray.shutdown()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _give_up_after(over: float, what: str, deadline_s: float) -> None:
    if time.monotonic() > over:
        sys.exit(f"{what} after {deadline_s:.0f} s; see the log of the step that starts it")
    time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    wait_for_nodes(int(sys.argv[1]), os.environ["RAY_ADDRESS"])
