"""What must hold at the end of a soak run, read from the run's own summary and from its referee."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actors.transport.faulty import Fault
from orchestrator.summary import Summary
from tests.benchmarks.arms import Line
from tests.benchmarks.paces import is_balanced, is_between_blocks
from tests.benchmarks.watched_cluster import WatchedCluster


def wrong(summary: Summary, watched: WatchedCluster, *, batches: int, bound: int) -> list[str]:
    """Return everything that does not hold, one sentence each; empty if all is well."""
    said = [] if summary.status == "completed" else [f"the run is {summary.status}"]
    said += [
        f"{block['name']}: {block['updates']} updates, expected {batches}"
        for block in summary.blocks
        if block["updates"] != batches
    ]
    said += [event["reason"] for event in summary.events if event["event"] == "imbalance"]
    for edge in summary.edges:
        said += [f"{edge['name']}: its ledger does not add up: {edge}"] if not is_balanced(edge) else []
        said += _too_stale(edge, summary, watched, bound) if is_between_blocks(edge["name"]) else []
        said += _not_fired(edge, watched)
    return said


def _too_stale(edge: Mapping[str, Any], summary: Summary, watched: WatchedCluster, bound: int) -> Iterator[str]:
    name, reported = edge["name"], edge["staleness"]["max"]
    if reported > bound:
        yield f"{name}: reports a staleness of {reported}, the bound is {bound}"
    seen = referee(watched, name)
    if max(seen) > bound:
        yield f"{name}: the referee saw a staleness of {max(seen)}, the bound is {bound}"
    consumer = name.split("->")[1]
    uses = next(block["uses"]["num_uses"] for block in summary.blocks if block["name"] == consumer)
    if seen.total() != uses:
        yield f"{name}: the referee saw {seen.total()} uses, {consumer} reports {uses}"


def _not_fired(edge: Mapping[str, Any], watched: WatchedCluster) -> Iterator[str]:
    """Every fault of a message that was sent has fired once, and each duplicate was noticed and dropped."""
    name = edge["name"]
    due, fired = planned(watched.planned[name], edge["sent"]), fired_on(watched, name)
    if fired != due:
        yield f"{name}: the faults {dict(fired)} have fired, of {dict(due)} planned for the messages that were sent"
    if edge["duplicates"] != fired["duplicate"]:
        yield f"{name}: {edge['duplicates']} duplicates were noticed, {fired['duplicate']} made"


def planned(faults: Sequence[Fault], sent: int) -> Counter[str]:
    """Return how many faults of each kind are planned for the first `sent` messages."""
    return Counter(fault.action for fault in faults if fault.sequence < sent)


def fired_on(watched: WatchedCluster, edge: str) -> Counter[str]:
    """Return how many faults of each kind have happened on an edge."""
    return watched.seen[edge.split("->")[1]].fired.get(edge, Counter())


def referee(watched: WatchedCluster, edge: str) -> Counter[int]:
    """Return the staleness of an edge as the clocks show it."""
    producer, consumer = edge.split("->")
    return watched.staleness(producer, consumer)


def wrong_between(lines: Sequence[Line]) -> list[str]:
    """Return what does not hold between runs: under a pipeline no wire and no slow-down changes a weight."""
    weights = {
        line["weights_sha256"] for line in lines if line["arm"]["schedule"] == "pipeline" and "weights_sha256" in line
    }
    return [] if len(weights) < 2 else ["pipeline: the weights differ between the good wire and the spoiled one"]
