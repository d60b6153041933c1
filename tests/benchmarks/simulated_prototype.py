"""What Ray by itself allows where devices are simulated: blocks that sleep and hand bytes on, and do nothing else.

    python -m tests.benchmarks.simulated_prototype [--blocks 8 --compute-ms 50 --message-mb 4] [--steps 200]
        [--torch | --alone]

No layers, gradients, optimizer, checks or recovery: one actor per block, whose consumer asks for what has arrived, up
to four messages a call. With `--torch` each block also does what no training in torch can do without: the forward pass,
a loss, the backward pass and the optimizer's step of a simulated device, as plainly as they can be written. `--alone`
is one such device in one process, without Ray, messages or neighbours: what a chain of them is bound by. Prints the
efficiency as `simulated_devices.py` counts it, as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import warnings
from collections import deque
from typing import Any

import numpy as np
import ray
import torch

from tests.benchmarks.simulated_network import BATCH_SIZE, Costless, devices, rest, units_of

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
            received = arrived.popleft() if arrived else self._buffer
            if step == WARM_UP:
                begin = time.monotonic()
            self._step(received)
        return (time.monotonic() - begin) / (steps - WARM_UP)

    def _step(self, received: np.ndarray) -> None:
        rest(self._compute_s)
        self._hand_on(self._buffer)

    def _hand_on(self, made: np.ndarray) -> None:
        if not self._has_consumer:
            return
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._made) < self._capacity, DEADLINE_S):
                raise TimeoutError("the prototype's consumer took no message")
            self._made.append(made)
            self._changed.notify_all()


class Trainer(Sleeper):
    """One block that is trained by plain torch."""

    def __init__(self, producer: Any, compute_s: float, message_bytes: int, capacity: int, has_consumer: bool) -> None:
        super().__init__(producer, compute_s, message_bytes, capacity, has_consumer)
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # what Ray hands out is shared
        units = units_of(message_bytes)
        self._device, _ = devices(2, compute_s, units)
        self._buffer = np.ones(4 * BATCH_SIZE * units, np.uint8)
        self._optimizer = torch.optim.SGD(self._device.parameters(), lr=0.1)

    def _step(self, received: np.ndarray) -> None:
        x = torch.from_numpy(received).view(torch.float32).view(BATCH_SIZE, -1)
        output = self._device(x)
        self._hand_on(output.detach().numpy().view(np.uint8).reshape(-1))
        Costless.apply(output).backward()  # type: ignore[union-attr]
        self._optimizer.step()
        self._optimizer.zero_grad()


def efficiency(arguments: argparse.Namespace) -> float:
    """Return compute time / time per step of the slowest block, on a Ray that has been initialised."""
    blocks, compute_ms, message_mb = arguments.blocks, arguments.compute_ms, arguments.message_mb
    wrap: Any = ray.remote(concurrency_groups={"io": 4}, num_cpus=0)  # type: ignore[call-overload]
    kind, chain = wrap(Trainer if arguments.torch else Sleeper), []
    for index in range(blocks):
        below = chain[-1] if chain else None
        capacity = 16 if message_mb <= 1 else 4
        chain.append(kind.remote(below, compute_ms / 1000, round(message_mb * 2**20), capacity, index < blocks - 1))
    ray.get([block.__ray_ready__.remote() for block in chain], timeout=DEADLINE_S)
    periods = ray.get([block.run.remote(arguments.steps) for block in chain], timeout=DEADLINE_S)
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
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--alone", action="store_true")
    arguments = parser.parse_args()
    if arguments.alone:
        one = Trainer(None, arguments.compute_ms / 1000, round(arguments.message_mb * 2**20), 1, has_consumer=False)
        print(json.dumps({"efficiency": arguments.compute_ms / 1000 / one.run(arguments.steps)}))
        return
    from orchestrator.cluster.ray_cluster import RayCluster

    RayCluster(object_store_bytes=2 * 1024**3)  # starts Ray as our runs do
    print(json.dumps({"efficiency": efficiency(arguments)}))


if __name__ == "__main__":
    main()
