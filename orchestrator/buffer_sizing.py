"""`buffers.mode: auto`: how many messages may wait on each edge, from measured waits. Pure.

The rule, once per interval and edge:

- The buffer is *too small* if in the same interval its consumer waited for input and its producer waited
  for room, each for more than `HIGH` of the time: both lost time that a longer queue would have bridged.
  (If only one of them waits, the other is simply slower, and no buffer helps.) It grows by half.
- The buffer is *too large* if it was never more than half full for `CALM` intervals. It shrinks by one.
- A size that was too small is remembered, and shrinking stops above it, so sizes can't swing to and fro.
  The memory fades by one after `FORGET` quiet intervals, because loads change.
- Growth stops where all buffers together would hold more than the memory budget.
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


def resized(sizes: Mapping[str, Size], seen: Mapping[str, Seen], budget_bytes: float) -> dict[str, Size]:
    """Return every edge's next size; edges that nothing was seen of keep theirs.

    Args:
        sizes: by edge.
        seen: by edge, of the last interval.
        budget_bytes: what all buffers together may hold.
    """
    following = {edge: _next(size, seen[edge]) if edge in seen else size for edge, size in sizes.items()}
    held = sum(following[edge].capacity * seen[edge].message_bytes for edge in seen if edge in sizes)
    growing = [edge for edge in seen if edge in sizes and following[edge].capacity > sizes[edge].capacity]
    for edge in sorted(growing, key=lambda edge: seen[edge].wait_input):  # who gains least gives way first
        while held > budget_bytes and following[edge].capacity > sizes[edge].capacity:
            following[edge] = replace(following[edge], capacity=following[edge].capacity - 1)
            held -= seen[edge].message_bytes
    return following


def _next(size: Size, seen: Seen) -> Size:
    if min(seen.wait_input, seen.wait_output) > HIGH:
        too_small = max(size.too_small, size.capacity)
        return Size(capacity=size.capacity + math.ceil(size.capacity / 2), too_small=too_small)
    quiet = size.quiet + 1
    too_small = size.too_small
    if quiet >= FORGET:
        too_small, quiet = max(0, too_small - 1), 0
    calm = size.calm + 1 if 2 * seen.most_waiting <= size.capacity else 0
    if calm >= CALM and size.capacity - 1 > max(1, too_small):
        return Size(size.capacity - 1, too_small, 0, quiet)
    return Size(size.capacity, too_small, calm, quiet)
