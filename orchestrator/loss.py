"""An actor that is being replaced, and the line that tells the user of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.failures import Failure


@dataclass
class Loss:
    """An actor that was lost, or is moved, or returns to a checkpoint with others; seconds on the run's clock.

    `silent_s`: since its last report, when it was lost. `version`: uses it had finished. `batch`: that it was training
    on. `position`: of the checkpoint that it goes on from. `earlier`: why lives before were lost, none of which ran.
    `back_s`: when it ran again. `back_version`: uses of its next life when that was first heard.
    """

    failure: Failure
    at_s: float
    version: int
    due_s: float
    silent_s: float = 0.0
    batch: int | None = None
    is_fault: bool = False
    earlier: list[str] = field(default_factory=list)
    is_replaced: bool = False
    is_told: bool = False
    position: int = -1
    back_s: float = 0.0
    back_version: int | None = None

    @property
    def after_s(self) -> float:
        """Seconds from the loss until the next life ran."""
        return self.back_s - self.at_s

    @property
    def where(self) -> str:
        """What it goes on from."""
        return "the beginning" if self.position < 0 else f"the checkpoint at batch {self.position}"

    def line(self, names: Sequence[str], num_repeated: int, num_lost: int, *, all_return: bool) -> str:
        """Return the one line on a fault or a move that is over.

        Args:
            names: the actors of the process.
            num_repeated: batches that it does again.
            num_lost: messages that no life will send again.
            all_return: whether the other actors repeat them, too.
        """
        are, repeat = ("is", "repeats") if len(names) == 1 else ("are", "repeat")
        why = "; then ".join([*self.earlier, self.failure.reason])
        noticed = f", noticed within {self.silent_s:.1f} s" if self.is_fault else ""
        who = "all return and repeat" if all_return else repeat
        return (
            f"{' and '.join(names)} {are} back after {self.after_s:.1f} s ({why}{noticed}); "
            f"{who} {num_repeated} batches from {self.where}, {num_lost} messages lost"
        )
