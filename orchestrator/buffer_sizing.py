"""`buffers.mode: auto`: how many messages may wait on each edge, from measured waits. Pure.

The rule, once per interval and edge:

- The buffer is *too small* if in the same interval its consumer waited for input and its producer waited
  for room, each for more than `HIGH` of the time: both lost time that a longer queue would have bridged.
  (If only one of them waits, the other is simply slower, and no buffer helps.) It grows by half.
- The buffer is *too large* if it was never more than half full for `CALM` intervals. It shrinks by one.
- A size that was too small is remembered, and shrinking stops above it, so sizes can't swing to and fro.
  The memory fades by one after `FORGET` quiet intervals, because loads change.
- All buffers together hold no more than the memory budget: first growth is given up, then the largest shrink,
  down to one message each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

HIGH = 0.02
CALM = 5
FORGET = 60


@dataclass(frozen=True)
class Seen:
    """What an edge did in an interval.

    Args:
        wait_input: fraction of the time that its consumer waited for input.
        wait_output: fraction of the time that its producer waited for room.
        most_waiting: most messages that waited.
        message_bytes: size of a message.
    """

    wait_input: float
    wait_output: float
    most_waiting: int
    message_bytes: float


@dataclass(frozen=True)
class Size:
    """A buffer's capacity and what is known about it."""

    capacity: int
    too_small: int = 0
    calm: int = 0
    quiet: int = 0
    message_bytes: float = 0.0

    @property
    def num_bytes(self) -> float:
        """What the buffer holds when it is full."""
        return self.capacity * self.message_bytes


def resized(sizes: Mapping[str, Size], seen: Mapping[str, Seen], budget_bytes: float) -> dict[str, Size]:
    """Return every edge's next size; edges that nothing was seen of keep theirs, if the budget allows.

    Args:
        sizes: by edge.
        seen: by edge, of the last interval.
        budget_bytes: what all buffers together may hold.
    """
    following = {edge: _next(size, seen[edge]) if edge in seen else size for edge, size in sizes.items()}
    growing = [edge for edge in sizes if following[edge].capacity > sizes[edge].capacity]
    for edge in sorted(growing, key=lambda edge: seen[edge].wait_input):  # who gains least gives way first
        while _held(following) > budget_bytes and following[edge].capacity > sizes[edge].capacity:
            following[edge] = _smaller(following[edge])
    while _held(following) > budget_bytes and (large := [e for e in following if following[e].capacity > 1]):
        largest = max(large, key=lambda edge: following[edge].num_bytes)
        following[largest] = _smaller(following[largest])
    return following


def _held(sizes: Mapping[str, Size]) -> float:
    return sum(size.num_bytes for size in sizes.values())


def _smaller(size: Size) -> Size:
    return replace(size, capacity=size.capacity - 1)


def _next(size: Size, seen: Seen) -> Size:
    size = replace(size, message_bytes=seen.message_bytes)
    if min(seen.wait_input, seen.wait_output) > HIGH:
        grown = size.capacity + math.ceil(size.capacity / 2)
        return replace(size, capacity=grown, too_small=max(size.too_small, size.capacity), calm=0, quiet=0)
    too_small, quiet = size.too_small, size.quiet + 1
    if quiet >= FORGET:
        too_small, quiet = max(0, too_small - 1), 0
    calm = size.calm + 1 if 2 * seen.most_waiting <= size.capacity else 0
    size = replace(size, too_small=too_small, quiet=quiet, calm=calm)
    if calm >= CALM and size.capacity - 1 > max(1, too_small):
        return replace(_smaller(size), calm=0)
    return size
