"""Which runs the stragglers benchmark makes: a block slowed by factors, buffers of several sizes, three schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.arms import Arm, make_arm

SLOW_BLOCK = 1
BLOCKS = 4
PAD = 4
BOUND = 8
SEED = 0

REPLAY = {"order": "least_used", "max_reuse": 4, "on_full": "drop_oldest"}
PIPELINE, UNBOUNDED, PACED = "pipeline", "replay, no bound", f"replay, S = {BOUND}"
MODES: Mapping[str, Mapping[str, Any]] = {
    PIPELINE: {"schedule": {"name": "pipeline"}},
    UNBOUNDED: {"schedule": {"name": "replay"}, "buffers": REPLAY},
    PACED: {"schedule": {"name": "replay"}, "buffers": REPLAY, "staleness": {"max": BOUND}},
}


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Args:
        name: of the file of results.
        data: what is learned from; `validation` samples of it show the way along the run.
        width: units of the hidden layers, one per block.
        epochs: passes of a block over the data.
        evaluate_every: batches of the source between evaluations.
        factors: how many times longer the slow block computes.
        capacities: of the buffers, in messages.
        batch_size: samples per batch.
    """

    name: str
    data: Mapping[str, Any] = field(hash=False)
    width: int
    epochs: int
    evaluate_every: int
    factors: tuple[float, ...]
    capacities: tuple[int, ...]
    batch_size: int = 128

    @property
    def num_batches(self) -> int:
        """Updates of every block."""
        samples = int(self.data["limit"]) - int(self.data["validation"])
        return -(-samples // self.batch_size) * self.epochs


FULL = Size(
    "stragglers", {"name": "fashion_mnist", "limit": 21_200, "validation": 2000},
    width=384, epochs=2, evaluate_every=20, factors=(1, 1.2, 1.5, 2, 3), capacities=(1, 10, 50),
)  # fmt: skip
SHORT = Size(
    "stragglers_short", {"name": "fashion_mnist", "limit": 14_800, "validation": 2000},
    width=1024, epochs=3, evaluate_every=20, factors=(1, 3), capacities=(10,),
)  # fmt: skip


def arms(size: Size) -> list[Arm]:
    """Return every run. Undisturbed ones come first, then the strongest slow-down: the verdicts need these two."""
    first = sorted(size.factors, key=lambda factor: (factor != 1, -factor))
    return [_arm(size, mode, capacity, factor) for factor in first for capacity in size.capacities for mode in MODES]


def _arm(size: Size, mode: str, capacity: int, factor: float) -> Arm:
    facts = {"mode": mode, "capacity": capacity, "factor": factor}
    return make_arm(facts, _common(size), MODES[mode], {"buffers": {"capacity": capacity}}, _faults(factor))


def _faults(factor: float) -> dict[str, Any]:
    slow = [{"block": SLOW_BLOCK, "factor": factor}] if factor != 1 else []
    return {"faults": {"pad": PAD, "slow": slow}}


def _common(size: Size) -> dict[str, Any]:
    """Blocks of equal cost: a hidden layer and a linear layer for its loss, in the last block the network's own."""
    return {
        "seed": SEED,
        "data": {**size.data, "batch_size": size.batch_size},
        "network": {
            "name": "mlp", "widths": [size.width] * BLOCKS,
            "cuts": [f"hidden{block + 1}" for block in range(1, BLOCKS)],
        },
        "rule": {"name": "local"},
        "objective": {"name": "cross_entropy", "head": {"kind": "linear"}},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "schedule": {"name": "cosine"}},
        "training": {"epochs": size.epochs},
        "evaluation": {"every_batches": size.evaluate_every, "batch_size": 500, "splits": ["validation"]},
        "placement": {"cpus_per_block": 0.1},
    }  # fmt: skip
