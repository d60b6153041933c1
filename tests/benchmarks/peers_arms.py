"""The arms of the comparison, who measures them, and the bound that each can reach at best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MICRO_BATCHES = (2, 4, 8, 16)
GROUPS = (
    "unlocked", "backprop_2_threads", "ddp_2_ranks", "gpipe", "1f1b", "backprop_1_thread", "unlocked_one_process",
)  # fmt: skip
"""What one process tree measures, in the order of a round; the pipelines measure every number of micro-batches."""


@dataclass(frozen=True)
class Arm:
    """An arm of the table.

    Args:
        what: for the reader.
        bound: samples/s over those of back-propagation with one thread, at best; None: it is that, or ours.
        target: what ours over this arm must reach; None: none is set.
    """

    what: str
    bound: float | None
    target: float | None = None


def arms() -> dict[str, Arm]:
    """Return every arm by name, ours first."""
    found = {
        "unlocked": Arm("unlocked, 2 blocks on 2 actors", None),
        "backprop_2_threads": Arm("backprop, 1 process, 2 threads", 2.0, 1.15),
        "backprop_1_thread": Arm("backprop, 1 process, 1 thread", 1.0, 1.7),
        "ddp_2_ranks": Arm("DDP, 2 gloo ranks, 64 samples each", 2.0, 1.0),
    }
    for schedule, name in (("gpipe", "GPipe"), ("1f1b", "1F1B")):
        for count in MICRO_BATCHES:
            found[f"{schedule}_m{count}"] = Arm(f"{name}, 2 gloo ranks, M = {count}", pipeline_bound(2, count))
    return found | {"unlocked_one_process": Arm("unlocked, both blocks in 1 process, 1 thread", None)}


PIPELINING_TARGET = 1.4


def pipeline_bound(num_stages: int, micro_batches: int) -> float:
    """Return the speed-up of a synchronous pipeline of equal stages over one process: N M / (M + N - 1)."""
    return num_stages * micro_batches / (micro_batches + num_stages - 1)


def decoupled_bound(num_blocks: int, head_share: float, saved_share: float) -> float:
    """Return the speed-up of equal decoupled blocks over back-propagation in one process.

    Args:
        num_blocks: N, each on a core of its own.
        head_share: computing of all auxiliary heads, over that of back-propagation.
        saved_share: input gradients that no block computes, over the same.
    """
    return num_blocks / (1 + head_share - saved_share)


def best_pipeline(rates: Mapping[str, float]) -> str | None:
    """Return the name of the fastest pipeline."""
    found = [name for name in rates if name.startswith(("gpipe", "1f1b"))]
    return max(found, key=lambda name: rates[name], default=None)
