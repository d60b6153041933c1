"""The runs of the soak: tiny blocks, random slow-downs, a staleness bound, on a good wire and on a bad one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actors.seeds import seed_of
from actors.transport.faulty import Fault, random_faults
from tests.benchmarks.arms import Arm, make_arm

BATCH_SIZE = 8
BATCHES_PER_EPOCH = 500
BOUND = 2
SEED = 0
SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "pipeline": {"schedule": {"name": "pipeline"}},
    "replay": {
        "schedule": {"name": "replay"},
        "buffers": {"capacity": 6, "order": "least_used", "max_reuse": 3, "on_full": "drop_oldest"},
    },
}
SPOILED_SHARE = 0.05
LONGEST_DELAY_S = 0.02


def arms(batches: int) -> list[Arm]:
    """Return the four runs of so many updates per block; a multiple of 500, or less than that."""
    return [_arm(batches, schedule, is_spoiled) for is_spoiled in (False, True) for schedule in SCHEDULES]


def _arm(batches: int, schedule: str, is_spoiled: bool) -> Arm:
    facts = {"schedule": schedule, "wire": "spoiled" if is_spoiled else "good"}
    beside = {"share": SPOILED_SHARE, "longest_s": LONGEST_DELAY_S} if is_spoiled else {}
    overlapping = {"buffers": {"window": 2}} if is_spoiled else {}  # a reply can only overtake another one
    return make_arm(facts, _common(batches), SCHEDULES[schedule], overlapping, beside=beside)


def num_batches(arm: Arm) -> int:
    """Return the updates of every block of a run."""
    data = arm.config.data
    return int(data.options["size"]) // data.batch_size * arm.config.training.epochs


def faults_of(arm: Arm, edge: str) -> Sequence[Fault]:
    """Return what happens on an edge of a run: to one message in twenty, among as many as there are updates."""
    if not arm.beside:
        return ()
    seed = seed_of(SEED, "soak", edge)
    return random_faults(num_batches(arm), arm.beside["share"], seed, longest_s=arm.beside["longest_s"])


def _common(batches: int) -> dict[str, Any]:
    """Lognormal step lengths of every block, and blocks that are slower than others: each waits for each at times."""
    epoch = min(batches, BATCHES_PER_EPOCH)
    return {
        "seed": SEED,
        "data": {
            "name": "generated", "shape": [1, 4, 4], "classes": 4, "size": epoch * BATCH_SIZE, "test_size": 16,
            "batch_size": BATCH_SIZE,
        },
        "network": {"name": "mlp", "widths": [16, 16, 16], "blocks": 4},
        "rule": {"name": "local"},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "training": {"epochs": -(-batches // epoch)},
        "evaluation": {"every_batches": 100},
        "staleness": {"max": BOUND},
        "faults": {"slow": [{"block": 1, "factor": 2}, {"block": 2, "factor": 3}], "jitter": 1.0},
        "placement": {"cpus_per_block": 0.1},
    }  # fmt: skip
