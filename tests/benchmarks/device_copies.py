"""What messages cost a block that computes on a GPU: copied between its kernels, or beside them.

    python -m tests.benchmarks.device_copies [--compute-ms 20] [--sizes 1,4,16,32] [--steps 60] [--rounds 3] [--json]

A step takes a message over a socket from another process, computes on a GPU and sends a message of the same size to a
third process. Arms, by turns: `none`, the computing alone; `between`, plain copies from and to pageable memory in the
thread that computes; `beside`, pinned memory and the streams of `actors/transport/staging.py`. Medians in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from statistics import median

import torch
from torch import Tensor

from actors.messages import Kind, Message
from actors.transport.inbox import Inbox
from actors.transport.outbox import Outbox
from actors.transport.same_node import SameNodePort, TakeServer
from actors.transport.staging import Entrance
from tests.benchmarks.methods_runs import commit, surroundings
from tests.contract.carriers import Nowhere

ARMS = ("none", "between", "beside")
CAPACITY, WARM_UP, DEADLINE_S = 3, 10, 60.0
SIDE = 4096
"""Of the square matrices whose products are the computing."""


class Computing:
    """Kernels that take about a given time, between what was received and what is sent.

    Args:
        device: where.
        compute_ms: how long.
    """

    def __init__(self, device: torch.device, compute_ms: float) -> None:
        self._matrix = torch.randn(SIDE, SIDE, device=device) / SIDE**0.5
        self._num_products = 1
        self._timed(3)
        self._num_products = max(1, round(compute_ms / self._timed(10)))

    def __call__(self, received: Tensor) -> Tensor:
        """Return a tensor like the one received, on the device, that depends on it and on all products."""
        found = self._matrix + received.flatten()[0]
        for _ in range(self._num_products):
            found = self._matrix @ found
        return received + found[0, 0]

    def _timed(self, count: int) -> float:
        received = torch.zeros(1, device=self._matrix.device)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            self(received)
        torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - begin) / count


class Boxes:
    """Outboxes of a process, served over a socket."""

    def __init__(self) -> None:
        self._boxes: dict[str, Outbox] = {}
        self.server = TakeServer(lambda take: self._boxes[take.edge].take(take))

    def open(self, edge: str) -> Outbox:
        """Begin an edge."""
        self._boxes[edge] = Outbox("copies", edge, CAPACITY)
        return self._boxes[edge]


def inbox_of(edge: str, address: str, entrance: Entrance | None = None) -> Inbox:
    """Return the consumer's end of an edge."""
    return Inbox("copies", edge, SameNodePort(address, Nowhere()), entrance=entrance)


def feed(line: Connection) -> None:
    """Process: say where, then for every (edge, size, count) send that many messages of `size` numbers."""
    boxes = Boxes()
    line.send(boxes.server.address)
    while order := line.recv():
        edge, size, count = order
        box, numbers = boxes.open(edge), torch.randn(size)
        line.send("opened")
        for batch in range(count):
            assert box.put(Message(Kind.ACTIVATION, batch, tensors={"h": numbers}), DEADLINE_S)


def drain(line: Connection) -> None:
    """Process: for every (edge, address, count) take that many messages."""
    while order := line.recv():
        edge, address, count = order
        inbox = inbox_of(edge, address)
        for _ in range(count):
            assert inbox.get(DEADLINE_S) is not None
        line.send("taken")


class Neighbours:
    """The processes before and behind the one that computes."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._feeding, feeds = context.Pipe()
        self._draining, drains = context.Pipe()
        self._processes = [
            context.Process(target=target, args=(line,), daemon=True)
            for target, line in ((feed, feeds), (drain, drains))
        ]
        for process in self._processes:
            process.start()
        self._address, self._boxes = self._feeding.recv(), Boxes()
        self._num = 0

    def begin(self, size: int, count: int, entrance: Entrance | None) -> tuple[Inbox, Outbox]:
        """Let messages come and go on new edges."""
        self._num += 1
        into, out = f"in{self._num}", f"out{self._num}"
        outbox = self._boxes.open(out)
        self._draining.send((out, self._boxes.server.address, count))
        self._feeding.send((into, size, count))
        self._feeding.recv()
        return inbox_of(into, self._address, entrance), outbox

    def end(self) -> None:
        """Wait until all has been taken."""
        self._draining.recv()

    def close(self) -> None:
        """End the processes."""
        for line in (self._feeding, self._draining):
            line.send(None)
        for process in self._processes:
            process.join(DEADLINE_S)


def step_ms(
    arm: str, computing: Computing, neighbours: Neighbours, device: torch.device, size: int, steps: int
) -> float:
    """Return the median time of a step of one arm, in milliseconds."""
    if arm == "none":
        resting = torch.randn(size, device=device)
        return _median_ms(lambda: computing(resting), steps)
    entrance = Entrance(device) if arm == "beside" else None
    inbox, outbox = neighbours.begin(size, WARM_UP + steps, entrance)

    def step() -> Tensor:
        message = inbox.get(DEADLINE_S)
        assert message is not None
        sent = computing(message.tensors["h"].to(device))
        torch.cuda.current_stream(device).synchronize()  # as a block that looks at what it sends
        on_its_way = {"h": sent.cpu() if arm == "between" else sent}
        assert outbox.put(replace(message, tensors=on_its_way), DEADLINE_S)
        return sent

    found = _median_ms(step, steps)
    neighbours.end()
    return found


def _median_ms(step: Callable[[], Tensor], steps: int) -> float:
    """Return the median time between the ends of steps, each waited for."""
    ends = []
    for _ in range(WARM_UP + steps):
        step()
        torch.cuda.current_stream().synchronize()
        ends.append(time.perf_counter())
    return 1000 * median(after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False))


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the medians of all rounds, by size of message and arm."""
    device = torch.device("cuda:0")
    computing, neighbours, rows = Computing(device, arguments.compute_ms), Neighbours(), []
    for size_mb in arguments.sizes:
        found: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for _ in range(arguments.rounds):
            for arm in ARMS:
                size = int(size_mb * 2**18)
                found[arm].append(step_ms(arm, computing, neighbours, device, size, arguments.steps))
        rows.append({"message_mb": size_mb, **{arm: median(times) for arm, times in found.items()}, "rounds": found})
    neighbours.close()
    return {"device": torch.cuda.get_device_name(device), "rows": rows, **surroundings(), "commit": commit()}


def main() -> None:
    """Print the measurement as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compute-ms", type=float, default=20.0)
    parser.add_argument("--sizes", type=lambda text: [float(size) for size in text.split(",")], default=[1, 4, 16, 32])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("device_copies: expected a CUDA device, got none; run it on a machine with a GPU")
    found = measure(arguments)
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{found['device']}, milliseconds per step (share of it that is computing)")
    print(f"{'MB':>6}" + "".join(f"{arm:>18}" for arm in ARMS))
    for row in found["rows"]:  # type: ignore[attr-defined]
        print(f"{row['message_mb']:6g}" + "".join(f"{row[arm]:10.2f} ({row['none'] / row[arm]:.3f})" for arm in ARMS))


if __name__ == "__main__":
    main()
