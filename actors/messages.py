"""What travels on an edge: a small header and named tensors.

A message is made once by its producer and never changed. Labels travel with the activation, so
the two can't be separated; everything that matters (evaluate, snapshot, end) is in band.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any

from torch import Tensor


class Kind(IntEnum):
    """What a message is for."""

    ACTIVATION = 0
    FEEDBACK = 1
    EVALUATION = 2
    """One evaluation batch, after the position of the batch it follows."""
    DONE = 3
    """A block has finished a batch (schedule `lockstep`: the source waits for it)."""
    END = 4
    """Nothing follows on this edge."""
    ORDERS = 5
    """The orders of a batch that the consumer does not train on (schedule `sequential`)."""


class Flags(IntFlag):
    """Orders that act at the position of the batch they ride on."""

    NONE = 0
    LAST = 1
    """No training batch follows: handle all outstanding feedback at this position."""
    SNAPSHOT = 2
    EVALUATE = 4
    """Evaluation batches follow this batch."""
    SPLIT_END = 8
    """On an evaluation batch: the last one of its split."""
    EVALUATION_END = 16
    """On an evaluation batch: the last one of its position."""


@dataclass(frozen=True)
class Message:
    """One message of an edge. `sequence` belongs to the edge; the outbox assigns it."""

    kind: Kind
    batch_id: int
    version: int = 0
    flags: Flags = Flags.NONE
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    split: str = ""
    """On an evaluation batch: the name of the split it belongs to."""
    answers: int = -1
    """On feedback: the producer's version of the activation it answers."""
    sequence: int = -1
    incarnation: int = 0

    def numbered(self, sequence: int, incarnation: int) -> Message:
        """Return it under a sequence number; a fraction of the time of `dataclasses.replace`."""
        return Message(
            self.kind, self.batch_id, self.version, self.flags, self.tensors, self.split, self.answers,
            sequence, incarnation,
        )  # fmt: skip


def to_plain(message: Message) -> dict[str, Any]:
    """Return a message as plain values and tensors in the host's memory, for a snapshot."""
    plain = {name: getattr(message, name) for name in ("batch_id", "version", "split", "answers", "sequence")}
    tensors = {name: tensor.cpu() for name, tensor in message.tensors.items()}
    return plain | {"kind": int(message.kind), "flags": int(message.flags), "tensors": tensors}


def from_plain(plain: Mapping[str, Any]) -> Message:
    """Return the message that `to_plain` made plain."""
    return Message(**{**plain, "kind": Kind(plain["kind"]), "flags": Flags(plain["flags"])})


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the payload size of a message in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
