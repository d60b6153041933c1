"""What a block has trained on: how often, on how many different batches, and from when to when."""

from __future__ import annotations

from collections.abc import Callable


class Uses:
    """Counts the uses of a block; under `replay` a batch may be used several times, or never.

    Args:
        clock: returns seconds since the block began to run.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.num_uses = 0
        self.num_batches = 0
        self.from_s = 0.0
        self.to_s = 0.0
        self._seen = bytearray()

    def begin(self, batch_id: int) -> None:
        """Count a use that begins now."""
        self.to_s = self._clock()
        if self.num_uses == 0:
            self.from_s = self.to_s
        self.num_uses += 1
        if batch_id >= len(self._seen):
            self._seen.extend(bytes(batch_id + 1 - len(self._seen)))
        self.num_batches += not self._seen[batch_id]
        self._seen[batch_id] = 1

    def as_dict(self) -> dict[str, float]:
        """Return `num_uses`, `num_batches` (different ones), and when the first and the last use began (seconds)."""
        return {
            "num_uses": self.num_uses,
            "num_batches": self.num_batches,
            "from_s": round(self.from_s, 4),
            "to_s": round(self.to_s, 4),
        }
