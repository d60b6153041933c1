"""The faults of the matrix: each row does one of them to a run, and says whether what was promised held."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks import fault_machines, fault_storage, kills
from tests.benchmarks.fault_runs import KEEPING, Facts, Running, disturbed, facts_of, undisturbed

FIFO = tuple(kills.RULES)
UNORDERED: Mapping[str, Mapping[str, Any]] = {
    "replay": {"schedule": {"name": "replay"}},
    "as_it_arrives": {"rule": {"name": "backprop"}, "schedule": {"feedback": "as_it_arrives"}},
}


@dataclass(frozen=True)
class Row:
    """One fault.

    Args:
        fault: what is done.
        holds: what must hold.
        runs: how many are done.
        run: does one, by its number, and says what it has shown.
        environment: set if the run needs a process and a Ray of its own.
    """

    fault: str
    holds: str
    runs: int
    run: Callable[[int], Facts]
    environment: Mapping[str, str] | None = field(default=None)


def same_weights(number: int, act: Callable[[Running], None], losses: int, **sections: Any) -> Facts:
    """Disturb a run whose rule and moment the number chooses; its weights must not change."""
    draw, rule = random.Random(7000 + number), FIFO[number % len(FIFO)]
    layers = {**KEEPING, "recovery": {"mode": ("local", "global")[number // len(FIFO) % 2]}, **sections}
    batch = draw.randrange(40, kills.BATCHES // 2)
    summary, told = disturbed(lambda folder: kills.config(folder, rule, layers), batch, act)
    return {"rule": rule, "mode": layers["recovery"].get("mode", "local")} | facts_of(
        summary, told, undisturbed(rule), losses
    )


def kill_one(number: int) -> Facts:
    """SIGKILL of any block at any moment."""
    draw = random.Random(number)
    block, late_s = f"block{draw.randrange(kills.BLOCKS)}", draw.random() * 0.2

    def act(run: Running) -> None:
        threading.Event().wait(late_s)
        run.signal(block, signal.SIGKILL)

    return {"block": block} | same_weights(number, act, 1)


def kill_neighbours(number: int) -> Facts:
    """SIGKILL of two blocks beside each other."""
    first = number % (kills.BLOCKS - 1)

    def act(run: Running) -> None:
        pids = {name: run.pid(name) for name in (f"block{first}", f"block{first + 1}")}
        for name, pid in pids.items():
            os.kill(pid, signal.SIGKILL)
            run.told.done[name] = time.time()

    return same_weights(number, act, 2)


def kill_recovering(number: int) -> Facts:
    """SIGKILL of a block, and of its next life when it has read its snapshot."""
    actor = f"block{number % kills.BLOCKS}"
    again = {"faults": {"kill": [{"actor": actor, "at": "restored", "lives": 2}]}}
    return same_weights(number, lambda run: run.signal(actor, signal.SIGKILL) and None, 2, **again)


def kill_source(number: int) -> Facts:
    """SIGKILL of the data actor."""
    return same_weights(number, lambda run: run.signal("source", signal.SIGKILL) and None, 1)


def kill_unordered(number: int) -> Facts:
    """SIGKILL of a block where blocks take what comes: how much is lost, and what that costs in accuracy."""
    how = list(UNORDERED)[number % len(UNORDERED)]
    sections = {**UNORDERED[how], **KEEPING}
    actor = f"block{number // len(UNORDERED) % kills.BLOCKS}"
    summary, told = disturbed(
        lambda folder: kills.config(folder, "dgl", sections),
        200,
        lambda run: run.signal(actor, signal.SIGKILL) and None,
    )
    seeds = [
        undisturbed("dgl", json.dumps({**UNORDERED[how], "seed": seed})).test_accuracy or 0.0 for seed in range(3, 8)
    ]
    spread = max(0.02, 3 * statistics.stdev(seeds))
    facts = facts_of(summary, told, None, 1)
    got, lowest = summary.test_accuracy or 0.0, statistics.mean(seeds) - spread
    if got < lowest:
        facts |= {"held": False, "why": f"accuracy {got:.3f}, expected at least {lowest:.3f}"}
    return {"how": how, "accuracy": got, "accuracy_lowest": lowest} | facts


def stop_shortly(number: int) -> Facts:
    """SIGSTOP of a block for 5 s: it is waited for."""

    def act(run: Running) -> None:
        pid = run.signal(f"block{number % kills.BLOCKS}", signal.SIGSTOP)
        run.told.done.clear()
        threading.Event().wait(5.0)
        os.kill(pid, signal.SIGCONT)

    return same_weights(number, act, 0)


def stop_long(number: int) -> Facts:
    """SIGSTOP past the deadline: replaced; then the zombie wakes up."""
    actor = f"block{number % kills.BLOCKS}"

    def act(run: Running) -> None:
        pid = run.signal(actor, signal.SIGSTOP)

        def wake() -> None:
            run.wait_for(lambda: bool(run.events("recovered")))
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                return  # ended for good by then

        threading.Thread(target=wake, daemon=True).start()

    return same_weights(number, act, 1, recovery={"mode": "local", "step_deadline_s": 3})


WEIGHTS = "equal weights, ledgers balanced"
ROWS: Mapping[str, Row] = {
    "block": Row("SIGKILL of a block", WEIGHTS, 10, kill_one),
    "neighbours": Row("SIGKILL of two neighbours together", WEIGHTS, 4, kill_neighbours),
    "recovering": Row("SIGKILL of a block, and again while it recovers", WEIGHTS, 4, kill_recovering),
    "unordered": Row("SIGKILL under replay and as_it_arrives", "losses counted, accuracy kept", 4, kill_unordered),
    "source": Row("SIGKILL of the data actor", WEIGHTS, 4, kill_source),
    "driver": Row("SIGKILL of the driver", "no actor survives; equal weights", 2, fault_machines.kill_driver),
    "commit": Row("driver dies inside a commit", "equal weights", 9, fault_storage.kill_commit),
    "damage": Row("shard truncated, flipped, missing; no manifest", "named, older one used", 4, fault_storage.damage),
    "stop": Row("SIGSTOP of a block for 5 s", "waited for, " + WEIGHTS, 3, stop_shortly),
    "hang": Row("SIGSTOP past the deadline, zombie wakes up", WEIGHTS, 3, stop_long),
    "disk": Row("disk full during a checkpoint, then free", "training goes on", 2, fault_storage.full_disk),
    "retention": Row("retention_bytes small", "source waits, " + WEIGHTS, 2, fault_storage.small_retention),
    "store": Row("object store of 80 MB, messages of 4 MB", "no spilling, one warning", 1,
                 fault_machines.small_store, {}),
    "messages": Row("messages dropped, corrupted, late, twice; and a SIGKILL", WEIGHTS, 5, fault_machines.spoil),
    "rpc": Row("Ray's calls fail", WEIGHTS, 2, fault_machines.fail_calls, fault_machines.RPC_FAILURES),
    "node": Row("a node of three is removed", "blocks re-placed, " + WEIGHTS, 2, fault_machines.remove_node,
                fault_machines.QUICK_HEALTH_CHECKS),
}  # fmt: skip
