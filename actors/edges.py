"""Which edges an actor has, by name. Pure: no torch, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LateInput:
    """Edge into a block whose message for batch t - `delay` is handled just before t.

    `origin` is the block whose loss, error or activation it carries.
    """

    edge: str
    origin: int
    delay: int


@dataclass(frozen=True)
class BlockEdges:
    """The edges of one block, by name.

    `late`: feedback, in the order in which it is handled.
    `down`: for each origin, the edges on which its feedback leaves this block.
    `raw`: the source's own line to this block, if its rule or objective needs the network's input.
    `late_activation`: the predecessor's activation where `raw` drives the block and `driver` is that line.
    `done`: under `lockstep`, where a finished batch is announced.
    `room`: messages that an outgoing edge must hold, because its consumer handles them that much later.
    """

    driver: str
    up: str | None = None
    late: tuple[LateInput, ...] = ()
    raw: str | None = None
    late_activation: LateInput | None = None
    down: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    done: str | None = None
    room: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceEdges:
    """The edges of the source.

    `up`: where batches leave, evaluation batches included. `raw`: where the training inputs leave once
    more, for blocks that need them. `done`: under `lockstep`, who must have finished a batch.
    `room`: messages that an edge of `raw` must hold, because its consumer reads them that much later than block 0.
    """

    up: tuple[str, ...]
    raw: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    room: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class EdgeSettings:
    """Sizes of an edge: messages that may wait, takes outstanding, messages in a reply.

    `retains`: whether messages stay with their producer until a committed checkpoint covers them.
    `codecs`: what activations and feedback travel as, by edge; of all others as they are.
    """

    capacity: int = 4
    window: int = 1
    limit: int = 4
    retains: bool = False
    codecs: Mapping[str, str] = field(default_factory=dict)
