"""Live progress: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class TrainingProgress:
    """Shows where a run is. `enabled=False` shows nothing."""

    def __init__(self, num_batches: int, batches_per_epoch: int, phase_batches: int | None, enabled: bool) -> None:
        self.num_batches, self.batches_per_epoch, self.phase_batches = num_batches, batches_per_epoch, phase_batches
        self._console = Console(stderr=True)
        self._live = enabled and self._console.is_terminal
        self._lines = enabled and not self._live
        self._last_line = time.monotonic()
        self._last_accuracy: float | None = None
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(), TextColumn("{task.fields[facts]}"),
            console=self._console, disable=not self._live, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=num_batches, facts="")
        self._bar.start()

    def say(self, text: str) -> None:
        """Print one line."""
        if self._live or self._lines:
            self._print(text)

    def show(self, batch: int, accuracy: float | None, blocks: Mapping[str, Mapping[str, Any]]) -> None:
        """Show where the chain is, its newest test accuracy and every block's loss."""
        where = self._where(batch)
        losses = " ".join(f"{b['loss']:.3f}" for b in blocks.values() if b["loss"] is not None)
        tested = "" if accuracy is None else f"test accuracy {accuracy:.2%}  "
        self._bar.update(self._task, completed=batch, description=where, facts=f"{tested}losses {losses}")
        is_news = accuracy != self._last_accuracy
        if self._lines and (is_news or time.monotonic() - self._last_line > LINE_EVERY_S):
            self._last_line, self._last_accuracy = time.monotonic(), accuracy
            self._print(f"{where}  batch {batch}/{self.num_batches}  {tested}losses {losses}")

    def _print(self, text: str) -> None:
        with suppress(OSError):  # a log on a full disk stops no training
            self._console.print(text, highlight=False)

    def _where(self, batch: int) -> str:
        """The epoch of all epochs, and under `sequential` which block trains."""
        total = -(-self.num_batches // self.batches_per_epoch)
        epoch = f"epoch {min(batch // self.batches_per_epoch + 1, total)}/{total}"
        if self.phase_batches is None:
            return epoch
        return f"{epoch}  block{min(batch, self.num_batches - 1) // self.phase_batches}"

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()
