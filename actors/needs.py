"""What a learning rule declares, and all that wiring and pacing ever learn about it.

Pure: no torch, no Ray. A rule may answer differently for the first, a middle and the last block.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Feedback(Enum):
    """Where the late credit of a block comes from."""

    NONE = "none"
    NEXT_BLOCK = "next_block"
    LAST_BLOCK = "last_block"


class Driver(Enum):
    """What starts a batch in a block."""

    PREDECESSOR = "predecessor"
    RAW_INPUT = "raw_input"


@dataclass(frozen=True)
class Place:
    """A block's position in the chain."""

    index: int
    num_blocks: int

    @property
    def is_first(self) -> bool:
        """Whether the block is fed by the source."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether the block's output is the network's output."""
        return self.index == self.num_blocks - 1


@dataclass(frozen=True)
class Needs:
    """What must flow to a block so that its rule can work.

    `origins` are the blocks above whose losses or errors reach this one, nearest first; one feedback
    message per batch comes from each. The hops of an origin o at block j are o - j.
    `late_credit` says that feedback is pulled back through the block's weights; False where it only
    teaches a model of the rule's own, so that nothing of the pass must outlive an update.
    `fields` are `labels` and `raw_input`, what the block needs of a batch besides its input.
    """

    feedback: Feedback = Feedback.NONE
    origins: tuple[int, ...] = ()
    late_credit: bool = True
    fields: frozenset[str] = frozenset()
    driver: Driver = Driver.PREDECESSOR
    objective: bool = True


def feedback_delay(hops: int, delay_per_hop: float) -> int:
    """Return D: feedback that came `hops` hops for batch t - D is handled just before batch t."""
    return 1 + int(delay_per_hop * hops)
