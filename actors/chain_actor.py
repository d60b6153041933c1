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
from actors.edge_ends import EdgeEnds
from actors.edges import EdgeSettings
from actors.fail_points import FailPoints
from actors.messages import Message
from actors.program import Program
from actors.replay_buffer import ReplaySettings
from actors.spec import BlockSpec, SourceSpec
from actors.task import Task
from actors.times import Times
from actors.trace import Trace
from actors.transport.inbox import Port
from actors.transport.outbox import Reply, Take


class ChainActor:
    """Base of BlockActor and DataActor.

    Args:
        spec: what to build.
        outgoing: names of the edges it produces.
        settings: sizes of its edges.
        keep: newest messages of an edge that its consumer may need again after a restart.
        restored: what the snapshot that this life goes on from says of the actor; None: it begins.
    """

    def __init__(
        self, spec: BlockSpec | SourceSpec, outgoing: Sequence[str], settings: EdgeSettings,
        keep: Mapping[str, int], restored: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.run_name, self.name = spec.run, spec.name
        self.machine, self.life = spec.machine, spec.life
        self.points = FailPoints(spec.kills, spec.num_restarts, spec.machine.is_shared)
        self.trace = Trace(spec.traced)
        self.times = Times(trace=self.trace)
        self.edges = EdgeEnds(
            spec.run, outgoing, settings, spec.life, lambda: self.version,
            room=spec.edges.room, keep=keep, state=restored, device=_entered_device(spec),
        )  # fmt: skip
        self.inboxes, self.outboxes = self.edges.inboxes, self.edges.outboxes
        self.restored = restored
        self.staleness: dict[str, Counter[int]] = {}
        self.books = Books(lambda edge: self.inboxes[edge].num_handed, self.account, lambda: self.version)
        self.task: Task | None = None
        self.is_paused = False
        self.applied: list[dict[str, Any]] = []
        """Changes of settings, and the version at which each applied."""
        self.bound: int | None = None
        """S, the staleness bound of the edges between blocks; None: no bound."""
        self._bounds: set[int | None] = set() if restored is None else set(restored.get("bounds", ()))
        """All bounds that held while staleness was counted."""
        self._stopped = threading.Event()

    @property
    def version(self) -> int:
        """Uses this actor has finished."""
        raise NotImplementedError

    @property
    def num_snapshots(self) -> int:
        """Snapshots that have been written so far, or have failed."""
        return 0

    def program(self) -> Program:
        """Return what this actor does."""
        raise NotImplementedError

    def connect(self, ports: Mapping[str, Port | None]) -> None:
        """Open the consumer's end of incoming edges, or give them lines to other lives of their producers."""
        for edge, port in ports.items():
            if self.edges.connect(edge, port) is not None:
                known = {} if self.restored is None else self.restored["staleness"]
                self.staleness[edge] = Counter(known.get(edge, {}))

    def take(self, take: Take) -> Reply:
        """Hand messages of an outgoing edge to its consumer."""
        return self.outboxes[take.edge].take(take)

    def start(self) -> Task:
        """Make the task that runs this actor's program."""
        self.task = Task(
            self.program(), self.inboxes, self.outboxes, self.times,
            bound_of=lambda edge: self.bound, handled_one=self.books.check,
        )  # fmt: skip
        if self.restored is not None:  # under first in, first out what had been received had been handled
            self.task.handled.update({edge: inbox.num_handed for edge, inbox in self.inboxes.items()})
        return self.task

    def state(self, position: int) -> dict[str, Any]:
        """Return what a snapshot says of the actor besides its block."""
        counts = {edge: dict(counts) for edge, counts in self.staleness.items()}
        return {**self.edges.state(position), "staleness": counts, "bounds": list(self._bounds)}

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

    def wait_for_stop(self) -> None:
        """Wait until `stop` is called."""
        self._stopped.wait()

    def order(self, name: str, values: Mapping[str, Any]) -> None:
        """Take an order; called from another thread than the one that computes.

        `pause` and `resume` stop the deadlines of waits, and blocks that would go on without the source;
        `set` changes what may change while a run goes on; `commit` tells of a checkpoint that covers a position.

        Raises:
            ValueError: the order is unknown.
        """
        if name in ("pause", "resume"):
            self.is_paused = name == "pause"
            if self.task is not None:
                self.task.restart_deadline()
        elif name == "commit":
            self.edges.commit(values["position"])
        elif name == "set":
            self.set(values)
            plain = {key: vars(value) if isinstance(value, ReplaySettings) else value for key, value in values.items()}
            self.applied.append({"values": plain, "position": self.version})
        else:
            raise ValueError(f"{self.name}: unknown order {name!r}")

    def set(self, values: Mapping[str, Any]) -> None:
        """Change settings: `bound` (staleness), `capacity` (of outgoing edges), `capacities` (of single ones)."""
        if "bound" in values:
            self.hold(values["bound"])
        if "capacity" in values:
            for edge, outbox in self.outboxes.items():
                if edge not in self.edges.room:
                    outbox.resize(values["capacity"])
        for edge, capacity in values.get("capacities", {}).items():
            self.outboxes[edge].resize(capacity)

    def hold(self, bound: int | None) -> None:
        """Keep a staleness bound from now on."""
        self.bound = bound
        self._bounds.add(bound)

    def loosest_bound(self) -> int | None:
        """Return the largest bound that held while staleness was counted; None: there was a time without."""
        bounds = [bound for bound in self._bounds if bound is not None]
        return max(bounds) if bounds and None not in self._bounds else None

    def on_trained(self, message: Message, edge: str) -> None:
        """Count a message that training starts on; under first in, first out nothing older will follow."""
        self.count_staleness(message, edge)
        self.promise(edge, message.version + 1)

    def count_staleness(self, message: Message, edge: str) -> None:
        """Count a message that training starts on, by the versions its producer is known to have finished since.

        A repeated start is none: the life before has made it, and its producer has gone on from there.
        """
        inbox = self.inboxes[edge]
        if message.version >= (inbox.promised or 0):
            self.staleness[edge][max(0, inbox.producer_version - 1 - message.version)] += 1

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
            "incarnation": self.life.incarnation,
            "node": socket.gethostname(),
            "device": self.machine.device,
            "cores": sorted(os.sched_getaffinity(0)) if self.machine.pins else None,
            "clock": {"now_s": self.times.now(), "wall_s": time.time()},
            "time_fraction": self.times.fractions(),
            "waiting_on": task.waiting_on if task else None,
            "waiting_s": task.waiting_s if task else 0.0,
            "done": bool(task and task.is_done),
            "applied": list(self.applied),
            "kept_bytes": self.edges.kept_bytes,
            "busy_s": task.busy_s if task else 0.0,
            "computed_s": self.times.seconds()["compute"],
            "sends": {
                edge: {
                    "sent": o.num_sent,
                    "unreceived": o.num_waiting,
                    "bytes": o.num_bytes,
                    "wire": o.wire_error.as_dict(),
                    "capacity": o.capacity,
                    "most_waiting": o.most_waiting(),
                    "waited_s": task.waits.seconds(edge) if task else 0.0,
                }
                for edge, o in self.outboxes.items()
            },
            "receives": {
                edge: {
                    "received": inbox.received + 1,
                    "lost": inbox.num_lost,
                    "arrived": inbox.num_buffered,
                    **self.account(edge),
                    "duplicates": inbox.num_duplicates,
                    "sessions": inbox.num_sessions,
                    "staleness": dict(self.staleness[edge]),
                    "bound": self.loosest_bound(),
                    "waited_s": task.waits.seconds(edge) if task else 0.0,
                    "imbalance": self.books.wrong.get(edge),
                }
                for edge, inbox in self.inboxes.items()
            },
        }

    def account(self, edge: str) -> dict[str, Any]:
        """Return what the program has done with what it was given on an edge: `trained`, `held`, `dropped`."""
        return {"trained": self.task.handled[edge] if self.task else 0, "held": 0, "dropped": {}}


def _entered_device(spec: BlockSpec | SourceSpec) -> str:
    """Return where an actor wants messages; what a replay buffer may hold for long stays in the host's memory."""
    is_prompt = isinstance(spec, BlockSpec) and spec.replay is None
    return spec.machine.device if is_prompt else "cpu"
