"""Cuts an ordered list of layers into blocks whose slowest one is as fast as can be. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerCost:
    """Seconds that one layer takes per batch.

    `forward`, `update`: in any block. `backward`: to its weights and its input; `first_backward`: what of that is
    needed where it is the first of its block.
    `head`: objective and auxiliary head on its output, where it is the last of its block.
    `enter`, `leave`: what the computing thread has to do with messages where its block begins, or ends.
    """

    forward: float = 0.0
    backward: float = 0.0
    first_backward: float = 0.0
    update: float = 0.0
    head: float = 0.0
    enter: float = 0.0
    leave: float = 0.0


def block_seconds(costs: Sequence[LayerCost]) -> Callable[[int, int], float]:
    """Return how long a block of layers a to b - 1 takes per batch, its head and messages included."""
    inner = [0.0, *itertools.accumulate(cost.forward + cost.backward + cost.update for cost in costs)]

    def seconds(a: int, b: int) -> float:
        first, last = costs[a], costs[b - 1]
        saved = first.backward - first.first_backward
        return inner[b] - inner[a] - saved + last.head + first.enter + last.leave

    return seconds


def balanced_starts(num_layers: int, seconds: Callable[[int, int], float], *, speeds: Sequence[float]) -> list[int]:
    """Return the first layer of blocks 1, 2, ...: the exact optimum, by dynamic programming over the cuts.

    Args:
        num_layers: in order; every block gets at least one.
        seconds: what a block of layers a to b - 1 takes on a device of speed 1, heads and transfer included.
        speeds: of the device of every block, first to last.

    Of several best cuts it is the one whose earlier blocks are the shortest. Takes n^2 k steps for n layers, k blocks.
    """
    num_blocks = len(speeds)
    assert 1 <= num_blocks <= num_layers, "checked by the caller"
    best = [0.0] + [math.inf] * num_layers
    choices: list[list[int]] = []
    for block, speed in enumerate(speeds):
        longest, choice = [math.inf] * (num_layers + 1), [0] * (num_layers + 1)
        for end in range(block + 1, num_layers - (num_blocks - 1 - block) + 1):
            for start in range(block, end):
                if best[start] >= longest[end]:
                    continue
                slowest = max(best[start], seconds(start, end) / speed)
                if slowest < longest[end]:
                    longest[end], choice[end] = slowest, start
        best = longest
        choices.append(choice)
    starts, end = [], num_layers
    for choice in reversed(choices):
        end = choice[end]
        starts.append(end)
    return starts[::-1][1:]
