"""What Ray by itself allows where devices are simulated: blocks that sleep and hand bytes on, and do nothing else.

    python -m tests.benchmarks.simulated_prototype [--blocks 8 --compute-ms 50 --message-mb 4] [--steps 200]

No layers, gradients, optimizer, checks or recovery: one actor per block, whose consumer asks for what has arrived, up
to four messages a call. Prints the efficiency as `simulated_devices.py` counts it, as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import deque
from typing import Any

import numpy as np
import ray

from tests.benchmarks.simulated_network import rest

WARM_UP = 20
LIMIT, OUTSTANDING = 4, 2
"""Messages in a call, and calls that wait for an answer at a time."""
DEADLINE_S = 600.0


class Sleeper:
    """One block.

    Args:
        producer: the actor of the block below; None: the first one makes its own messages.
        compute_s: how long it sleeps for each message.
        message_bytes: size of what it hands on.
        capacity: messages that may wait in it.
        has_consumer: whether anybody takes what it makes.
    """

    def __init__(self, producer: Any, compute_s: float, message_bytes: int, capacity: int, has_consumer: bool) -> None:
        self._producer, self._compute_s, self._capacity = producer, compute_s, capacity
        self._has_consumer = has_consumer
        self._buffer = np.full(message_bytes, 1, np.uint8)
        self._made: deque[np.ndarray] = deque()
        self._changed = threading.Condition()

    def take(self) -> list[np.ndarray]:
        """Return what waits, at least one message."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._made), DEADLINE_S):
                raise TimeoutError("the prototype's producer made no message")
            found = [self._made.popleft() for _ in range(min(LIMIT, len(self._made)))]
            self._changed.notify_all()
        return found

    def run(self, steps: int) -> float:
        """Return the seconds per step, from the end of the warm-up."""
        begin = 0.0
        arrived: deque[np.ndarray] = deque()
        calls: deque[Any] = deque()
        for step in range(steps):
            if self._producer is not None:
                while len(calls) < OUTSTANDING and len(arrived) < LIMIT:
                    calls.append(self._producer.take.options(concurrency_group="io").remote())
                if not arrived:
                    arrived.extend(ray.get(calls.popleft(), timeout=DEADLINE_S))
                arrived.popleft()
            if step == WARM_UP:
                begin = time.monotonic()
            rest(self._compute_s)
            if self._has_consumer:
                self._hand_on()
        return (time.monotonic() - begin) / (steps - WARM_UP)

    def _hand_on(self) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._made) < self._capacity, DEADLINE_S):
                raise TimeoutError("the prototype's consumer took no message")
            self._made.append(self._buffer)
            self._changed.notify_all()


def efficiency(blocks: int, compute_ms: float, message_mb: float, steps: int) -> float:
    """Return compute time / time per step of the slowest block, on a Ray that has been initialised."""
    wrap: Any = ray.remote(concurrency_groups={"io": 4}, num_cpus=0)  # type: ignore[call-overload]
    kind, chain = wrap(Sleeper), []
    for index in range(blocks):
        below = chain[-1] if chain else None
        capacity = 16 if message_mb <= 1 else 4
        chain.append(kind.remote(below, compute_ms / 1000, round(message_mb * 2**20), capacity, index < blocks - 1))
    ray.get([block.__ray_ready__.remote() for block in chain], timeout=DEADLINE_S)
    periods = ray.get([block.run.remote(steps) for block in chain], timeout=DEADLINE_S)
    for block in chain:
        ray.kill(block)
    return compute_ms / 1000 / max(periods)


def main() -> None:
    """Print one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--compute-ms", type=float, default=50.0)
    parser.add_argument("--message-mb", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    from orchestrator.cluster.ray_cluster import RayCluster

    RayCluster(object_store_bytes=2 * 1024**3)  # starts Ray as our runs do
    found = efficiency(arguments.blocks, arguments.compute_ms, arguments.message_mb, arguments.steps)
    print(json.dumps({"efficiency": found}))


if __name__ == "__main__":
    main()
