"""What every actor of a chain has: edges, a program driven by one thread, reports, orders.

A plain class: no Ray. The thread that calls `run` computes; `take`, `report` and `order` are called
from others.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from actors.edges import EdgeSettings
from actors.messages import Message
from actors.program import Program
from actors.spec import Machine
from actors.task import Task
from actors.times import Times
from actors.transport.inbox import Inbox, Port
from actors.transport.outbox import Outbox, Reply, Take


class ChainActor:
    """Base of BlockActor and DataActor.

    Args:
        run: name of the run.
        name: the actor's name.
        outgoing: names of the edges it produces.
        settings: sizes of its edges.
        machine: how it uses the processor.
        incarnation: which life this is.
    """

    def __init__(
        self,
        run: str,
        name: str,
        outgoing: Sequence[str],
        settings: EdgeSettings,
        machine: Machine,
        incarnation: int = 0,
    ) -> None:
        self.run_name, self.name = run, name
        self.settings, self.machine, self.incarnation = settings, machine, incarnation
        self.times = Times()
        self.inboxes: dict[str, Inbox] = {}
        self.outboxes = {
            edge: Outbox(run, edge, settings.capacity, incarnation=incarnation, version=lambda: self.version)
            for edge in outgoing
        }
        self.staleness: dict[str, Counter[int]] = {}
        self.trained: Counter[str] = Counter()
        self.task: Task | None = None
        self._stopped = threading.Event()

    @property
    def version(self) -> int:
        """Uses this actor has finished."""
        raise NotImplementedError

    def program(self) -> Program:
        """Return what this actor does."""
        raise NotImplementedError

    def connect(self, ports: Mapping[str, Port]) -> None:
        """Open the consumer's end of every incoming edge."""
        for edge, port in ports.items():
            self.inboxes[edge] = Inbox(
                self.run_name, edge, port,
                window=self.settings.window, limit=self.settings.limit, incarnation=self.incarnation,
            )  # fmt: skip
            self.staleness[edge] = Counter()

    def take(self, take: Take) -> Reply:
        """Hand messages of an outgoing edge to its consumer."""
        return self.outboxes[take.edge].take(take)

    def start(self) -> Task:
        """Make the task that runs this actor's program."""
        self.task = Task(self.program(), self.inboxes, self.outboxes, self.times)
        return self.task

    def run(self) -> dict[str, Any]:
        """Run the program to its end in this thread and return what the actor says at its end."""
        torch.set_num_threads(self.machine.threads)  # OpenMP's thread count belongs to the calling thread
        task = self.start()
        self.times.start()
        task.run(self.machine.deadline_s, self._stopped.is_set)
        return self.finish()

    def finish(self) -> dict[str, Any]:
        """Stop the clock and return the final facts."""
        self.times.stop()
        return self.report()

    def stop(self) -> None:
        """Make `run` raise at its next wait."""
        self._stopped.set()

    def order(self, name: str) -> None:
        """Take an order that acts at a position; the base knows none."""
        raise ValueError(f"{self.name}: unknown order {name!r}")

    def on_trained(self, message: Message, edge: str) -> None:
        """Count a message that training starts on, and how stale it was."""
        inbox = self.inboxes[edge]
        self.trained[edge] += 1
        inbox.oldest_trainable = message.version + 1
        self.staleness[edge][max(0, inbox.producer_version - 1 - message.version)] += 1

    def report(self) -> dict[str, Any]:
        """Return small facts about this actor."""
        task = self.task
        return {
            "name": self.name,
            "version": self.version,
            "pid": os.getpid(),
            "node": socket.gethostname(),
            "device": self.machine.device,
            "time_fraction": self.times.fractions(),
            "waiting_on": task.waiting_on if task else None,
            "waiting_s": task.waiting_s if task else 0.0,
            "done": bool(task and task.is_done),
            "sends": {
                edge: {"sent": o.num_sent, "unreceived": o.num_waiting, "bytes": o.num_bytes}
                for edge, o in self.outboxes.items()
            },
            "receives": {
                edge: {
                    "received": inbox.received + 1,
                    "trained": self.trained[edge],
                    "buffered": inbox.num_buffered,
                    "duplicates": inbox.num_duplicates,
                    "sessions": inbox.num_sessions,
                    "staleness": dict(self.staleness[edge]),
                }
                for edge, inbox in self.inboxes.items()
            },
        }
