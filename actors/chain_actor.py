"""What every actor of a chain has: edges, a program driven by one thread, reports, orders.

A plain class: no Ray. The thread that calls `run` computes; `take`, `report` and `order` are called
from others.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from actors.books import Books
from actors.edges import EdgeSettings
from actors.messages import Message
from actors.program import Program
from actors.spec import Machine
from actors.task import Task
from actors.times import Times
from actors.trace import Trace
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
        room: messages that an edge must hold besides those that its consumer has read and not yet acknowledged,
            whatever the settings say.
        traced: batches whose spans it keeps for the timeline.
    """

    def __init__(
        self,
        run: str,
        name: str,
        outgoing: Sequence[str],
        settings: EdgeSettings,
        machine: Machine,
        incarnation: int = 0,
        room: Mapping[str, int] | None = None,
        traced: Sequence[range] = (),
    ) -> None:
        self.run_name, self.name = run, name
        self.settings, self.machine, self.incarnation = settings, machine, incarnation
        self._room = dict(room or {})
        self.trace = Trace(traced)
        self.times = Times(trace=self.trace)
        self.inboxes: dict[str, Inbox] = {}
        self.outboxes = {
            edge: Outbox(run, edge, capacity, incarnation=incarnation, version=lambda: self.version)
            for edge, capacity in edge_capacities(outgoing, settings, self._room).items()
        }
        self.staleness: dict[str, Counter[int]] = {}
        self.books = Books(lambda edge: self.inboxes[edge].received + 1, self.account, lambda: self.version)
        self.task: Task | None = None
        self.is_paused = False
        self.applied: list[dict[str, Any]] = []
        """Changes of settings, and the version at which each applied."""
        self.bound: int | None = None
        """S, the staleness bound of the edges between blocks; None: no bound."""
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
        self.task = Task(
            self.program(), self.inboxes, self.outboxes, self.times,
            bound_of=lambda edge: self.bound, handled_one=self.books.check,
        )  # fmt: skip
        return self.task

    def run(self) -> dict[str, Any]:
        """Run the program to its end in this thread and return what the actor says at its end."""
        torch.set_num_threads(self.machine.threads)  # OpenMP's thread count belongs to the calling thread
        task = self.start()
        self.times.start()
        task.run(self.machine.deadline_s, self._stopped.is_set, lambda: self.is_paused)
        return self.finish()

    def finish(self) -> dict[str, Any]:
        """Stop the clock and return the final facts, the spans for the timeline included."""
        self.times.stop()
        return self.report() | {"spans": self.trace.spans, "spans_left_out": self.trace.num_left_out}

    def stop(self) -> None:
        """Make `run` raise at its next wait."""
        self._stopped.set()

    def order(self, name: str, values: Mapping[str, Any]) -> None:
        """Take an order; called from another thread than the one that computes.

        `pause` and `resume` stop the deadlines of waits; `set` changes what may change while a run goes on.

        Raises:
            ValueError: the order is unknown.
        """
        if name in ("pause", "resume"):
            self.is_paused = name == "pause"
            if self.task is not None:
                self.task.restart_deadline()
        elif name == "set":
            self.set(values)
            self.applied.append({"values": dict(values), "position": self.version})
        else:
            raise ValueError(f"{self.name}: unknown order {name!r}")

    def set(self, values: Mapping[str, Any]) -> None:
        """Change settings: `bound` (staleness), `capacity` (of outgoing edges), `capacities` (of single ones)."""
        if "bound" in values:
            self.bound = values["bound"]
        if "capacity" in values:
            for edge, outbox in self.outboxes.items():
                if edge not in self._room:
                    outbox.resize(values["capacity"])
        for edge, capacity in values.get("capacities", {}).items():
            self.outboxes[edge].resize(capacity)

    def on_trained(self, message: Message, edge: str) -> None:
        """Count a message that training starts on; under first in, first out nothing older will follow."""
        self.count_staleness(message, edge)
        self.promise(edge, message.version + 1)

    def count_staleness(self, message: Message, edge: str) -> None:
        """Count a message that training starts on, and how many versions its producer has finished since."""
        self.staleness[edge][max(0, self.inboxes[edge].producer_version - 1 - message.version)] += 1

    def promise(self, edge: str, version: int) -> None:
        """Promise never again to start training on less than `version`; a paced producer is told at once."""
        inbox = self.inboxes[edge]
        if self.bound is not None:
            inbox.tell(version)
        else:
            inbox.oldest_trainable = max(inbox.oldest_trainable, version)

    def report(self) -> dict[str, Any]:
        """Return small facts about this actor."""
        task = self.task
        return {
            "name": self.name,
            "version": self.version,
            "pid": os.getpid(),
            "incarnation": self.incarnation,
            "node": socket.gethostname(),
            "device": self.machine.device,
            "clock": {"now_s": self.times.now(), "wall_s": time.time()},
            "time_fraction": self.times.fractions(),
            "waiting_on": task.waiting_on if task else None,
            "waiting_s": task.waiting_s if task else 0.0,
            "done": bool(task and task.is_done),
            "applied": list(self.applied),
            "sends": {
                edge: {
                    "sent": o.num_sent,
                    "unreceived": o.num_waiting,
                    "bytes": o.num_bytes,
                    "capacity": o.capacity,
                    "most_waiting": o.most_waiting(),
                    "waited_s": task.waits.seconds(edge) if task else 0.0,
                }
                for edge, o in self.outboxes.items()
            },
            "receives": {
                edge: {
                    "received": inbox.received + 1,
                    "arrived": inbox.num_buffered,
                    **self.account(edge),
                    "duplicates": inbox.num_duplicates,
                    "sessions": inbox.num_sessions,
                    "staleness": dict(self.staleness[edge]),
                    "waited_s": task.waits.seconds(edge) if task else 0.0,
                    "imbalance": self.books.wrong.get(edge),
                }
                for edge, inbox in self.inboxes.items()
            },
        }

    def account(self, edge: str) -> dict[str, Any]:
        """Return what the program has done with what it was given on an edge: `trained`, `held`, `dropped`."""
        return {"trained": self.task.handled[edge] if self.task else 0, "held": 0, "dropped": {}}


def edge_capacities(outgoing: Sequence[str], settings: EdgeSettings, room: Mapping[str, int]) -> dict[str, int]:
    """Return how many messages may wait on each edge; a consumer acknowledges window x limit messages late at most."""
    late = settings.window * settings.limit
    return {edge: late + room[edge] if edge in room else settings.capacity for edge in outgoing}
