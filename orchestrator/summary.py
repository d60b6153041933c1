"""`summary.json`: the machine-readable result of a run."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.ledger import edge_ledger

SCHEMA = 1


@dataclass(frozen=True)
class Summary:
    """The result of a run; accuracies are fractions of 1, times seconds."""

    method: str
    status: str
    test_accuracy: float | None
    test_loss: float | None
    validation_accuracy: float | None
    samples_per_s: float
    """Samples that a block trains on per second, the mean of all blocks: under `sequential` each has its turn."""
    wall_s: float
    epochs: int
    seed: int
    weights_sha256: str
    bottleneck: str
    run_dir: str
    ensemble_accuracy: float | None = None
    """Of all blocks' heads together (or of whatever else the rule lets them vote with)."""
    schema: int = SCHEMA
    blocks: Sequence[Mapping[str, Any]] = ()
    edges: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, Any]] = ()
    """Of all jobs of the run, oldest first."""
    evaluations: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def weights_sha256(digests: Mapping[str, str]) -> str:
    """Return one digest over tensors' digests by name; that of a network does not depend on its cuts."""
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(f"{name}\0{digests[name]}\n".encode())
    return whole.hexdigest()


def block_entry(facts: Mapping[str, Any], restarts: int = 0) -> dict[str, Any]:
    """Return a block's part of the summary from its final facts."""
    return {
        "name": facts["name"],
        "layers": facts["layers"],
        "version": facts["version"],
        "updates": facts["updates"],
        "updates_skipped": facts["num_skipped"],
        "uses": dict(facts["uses"]),
        "loss": facts["loss"],
        "test_accuracy": accuracy(last_evaluation(facts, "test")),
        "ensemble_accuracy": ensemble_accuracy(last_evaluation(facts, "test")),
        "weights_sha256": weights_sha256(facts["digests"]),
        "auxiliary_sha256": weights_sha256(facts["auxiliary_digests"]),
        "restarts": restarts,
        "time_fraction": facts["time_fraction"],
    }


def edge_entry(name: str, sender: Mapping[str, Any], receiver: Mapping[str, Any], bound: int | None) -> dict[str, Any]:
    """Return an edge's part of the summary: its ledger, its size, its staleness beside the bound.

    Staleness is what the consumer knew of when it began to train: its producer may have finished more versions since
    the last message or reply. The bound holds for those, too, since the producer itself is held back; the mean and the
    histogram are a lower limit of what clocks would show.
    """
    sent, got = sender["sends"][name], receiver["receives"][name]
    return {
        "name": name,
        **asdict(edge_ledger(sent, got)),
        "bytes": sent["bytes"],
        "wire": sent["wire"],
        "capacity": sent["capacity"],
        "duplicates": got["duplicates"],
        "staleness": _staleness(got["staleness"]) | {"bound": bound},
    }


def _staleness(counts: Mapping[Any, int]) -> dict[str, Any]:
    histogram = Counter({int(value): count for value, count in counts.items()})
    total = histogram.total()
    if not total:
        return {"mean": 0.0, "p99": 0, "max": 0, "histogram": {}}
    below, p99 = 0, 0
    for value in sorted(histogram):
        below += histogram[value]
        p99 = value
        if below >= 0.99 * total:
            break
    mean = sum(value * count for value, count in histogram.items()) / total
    return {
        "mean": mean,
        "p99": p99,
        "max": max(histogram),
        "histogram": {str(value): histogram[value] for value in sorted(histogram)},
    }


def last_evaluation(facts: Mapping[str, Any], split: str) -> Mapping[str, Any] | None:
    """Return a block's newest evaluation of a split."""
    found = [e for e in facts.get("evaluations", ()) if e["split"] == split and e["sums"]]
    return found[-1] if found else None


def accuracy(evaluation: Mapping[str, Any] | None) -> float | None:
    """Return the fraction of correct predictions of an evaluation, None if it does not count them."""
    return _per_sample(evaluation, "correct")


def ensemble_accuracy(evaluation: Mapping[str, Any] | None) -> float | None:
    """Return the fraction that this block and those below get right by voting, None if they don't vote."""
    return _per_sample(evaluation, "ensemble_correct")


def mean_loss(evaluation: Mapping[str, Any] | None) -> float | None:
    """Return the mean loss per sample of an evaluation."""
    return _per_sample(evaluation, "loss")


def _per_sample(evaluation: Mapping[str, Any] | None, name: str) -> float | None:
    if evaluation is None or name not in evaluation["sums"]:
        return None
    return evaluation["sums"][name] / evaluation["sums"]["num_samples"]


def bottleneck(blocks: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the block whose compute thread is busiest."""
    return max(blocks, key=lambda b: b["time_fraction"]["compute"])["name"]
