"""Which runs the staleness ablation makes: how much staleness, or how late feedback, three methods are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.arms import Arm, make_arm

BLOCKS = 4
PAD = 4
JITTER = 0.5
CAPACITY = 20
"""Of replay buffers: above the largest bound, so that the bound and not the capacity decides."""

DGL, CDNI, BACKPROP = "dgl, replay", "cdni", "pipelined_backprop"
METHODS: Mapping[str, Mapping[str, Any]] = {
    DGL: {
        "rule": {"name": "local"},
        "objective": {"name": "cross_entropy", "head": {"kind": "linear"}},
        "schedule": {"name": "replay"},
        "buffers": {"capacity": CAPACITY, "order": "least_used", "max_reuse": 4, "on_full": "drop_oldest"},
        "optimizer": {"lr": 0.05},
    },
    CDNI: {
        "rule": {"name": "synthetic_gradients", "conditioned": True},
        "schedule": {"name": "pipeline"},
        "optimizer": {"lr": 0.01, "synthesizer": {"name": "adam", "lr": 0.0003}},
    },
    BACKPROP: {
        "rule": {"name": "backprop"},
        "schedule": {"name": "pipeline", "late": "stash"},
        "optimizer": {"lr": 0.02},
    },
}  # fmt: skip
"""The rates are the same for all delays of a method: the best of four (cDNI: of four pairs) at delays of 0 and 2."""


@dataclass(frozen=True)
class Size:
    """How large the ablation is.

    Args:
        name: of the file of results.
        data: what is learned from.
        width: units of the hidden layers, one per block.
        epochs: passes of a block over the data.
        batch_size: samples per batch.
        bounds: S of decoupled greedy learning under replay.
        delays: s of the two methods with feedback: h hops come 1 + floor(s h) batches late.
        seeds: runs of each.
    """

    name: str
    data: Mapping[str, Any] = field(hash=False)
    width: int
    epochs: int
    batch_size: int
    bounds: tuple[int, ...]
    delays: tuple[float, ...]
    seeds: tuple[int, ...]

    def settings(self, method: str) -> tuple[float, ...]:
        """Return the values that a method is run with."""
        return self.bounds if method == DGL else self.delays


FULL = Size(
    "staleness_ablation", {"name": "fashion_mnist", "limit": 19_200},
    width=384, epochs=2, batch_size=128, bounds=(0, 1, 2, 4, 8, 16), delays=(0, 0.5, 1, 2, 4), seeds=(0, 1, 2),
)  # fmt: skip
SHORT = Size(
    "staleness_ablation_short", {"name": "digits", "limit": 1280},
    width=384, epochs=2, batch_size=32, bounds=(0, 4), delays=(0, 1, 2), seeds=(0,),
)  # fmt: skip


def arms(size: Size) -> list[Arm]:
    """Return every run, seeds outermost: one seed of all is worth more than all seeds of one."""
    return [
        _arm(size, method, value, seed)
        for seed in size.seeds
        for method in METHODS
        for value in size.settings(method)
    ]  # fmt: skip


def _arm(size: Size, method: str, value: float, seed: int) -> Arm:
    own: dict[str, Any] = {"staleness": {"max": value}} if method == DGL else {"schedule": {"delay_per_hop": value}}
    facts = {"method": method, "value": value, "seed": seed}
    return make_arm(facts, _common(size), METHODS[method], own, {"seed": seed})


def _common(size: Size) -> dict[str, Any]:
    return {
        "data": {**size.data, "batch_size": size.batch_size},
        "network": {
            "name": "mlp", "widths": [size.width] * BLOCKS,
            "cuts": [f"hidden{block + 1}" for block in range(1, BLOCKS)],
        },
        "optimizer": {"name": "sgd", "momentum": 0.9, "schedule": {"name": "cosine"}},
        "training": {"epochs": size.epochs},
        "evaluation": {"every_epochs": 0, "batch_size": 500, "splits": ["test"]},
        "faults": {"pad": PAD, "jitter": JITTER},
        "placement": {"cpus_per_block": 0.1},
    }  # fmt: skip
