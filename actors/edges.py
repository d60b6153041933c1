"""Which edges an actor has, by name. Pure: no torch, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LateInput:
    """Feedback edge into a block: what came from `origin` for batch t - `delay` is handled just before t."""

    edge: str
    origin: int
    delay: int


@dataclass(frozen=True)
class BlockEdges:
    """The edges of one block, by name.

    `down`: for each origin, the edges on which its feedback leaves this block.
    `done`: under `lockstep`, where a finished batch is announced.
    """

    driver: str
    up: str | None = None
    late: tuple[LateInput, ...] = ()
    down: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    done: str | None = None


@dataclass(frozen=True)
class SourceEdges:
    """The edges of the source: where batches leave, and under `lockstep` who must have finished one."""

    up: tuple[str, ...]
    done: tuple[str, ...] = ()


@dataclass(frozen=True)
class EdgeSettings:
    """Sizes of an edge: messages that may wait, takes outstanding, messages in a reply."""

    capacity: int = 4
    window: int = 2
    limit: int = 4
