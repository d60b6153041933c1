"""DataActor: the source of a chain. Seekable to any batch, so a new one can take over anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.chain_actor import ChainActor
from actors.datasets.batches import EvalBatches, TrainBatches
from actors.datasets.loading import load_data
from actors.program import Program
from actors.replay_source import ReplaySource
from actors.source_program import SourceProgram
from actors.spec import SourceSpec

EPOCHS_WITHOUT_END = 10**6


class DataActor(ChainActor):
    """Feeds the first block, and whoever needs the raw input."""

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(
            spec.run, spec.name, (*spec.edges.up, *spec.edges.raw),
            spec.settings, spec.machine, spec.incarnation, spec.edges.room, spec.traced,
        )  # fmt: skip
        self.spec = spec
        self._stop_asked = False
        data = load_data(spec.data)
        num_batches = TrainBatches(data, spec.data, spec.epochs).num_batches
        epochs = EPOCHS_WITHOUT_END if spec.repeats else spec.epochs
        batches = TrainBatches(data, spec.data, epochs)
        splits = {"test": data.test, "validation": data.validation}
        kind = ReplaySource if spec.until_stopped else SourceProgram
        self.source = kind(
            batches,
            {
                name: EvalBatches(split, spec.evaluation_batch_size)
                for name, split in splits.items()
                if split is not None and name in spec.evaluated_splits
            },
            spec.edges,
            self.times,
            evaluate_every=spec.evaluate_every,
            stop_asked=lambda: self._stop_asked,
            is_paused=lambda: self.is_paused and not self._stop_asked,
            num_batches=num_batches,
        )

    @property
    def version(self) -> int:
        """Batches sent so far."""
        return self.source.version

    def program(self) -> Program:
        """Return the source's program."""
        return self.source.run()

    def order(self, name: str, values: Mapping[str, Any]) -> None:
        """`stop`: the next batch is the last; `snapshot`: the next carries that order; `pause`: none follows."""
        if name == "stop":
            self._stop_asked = True
        elif name == "snapshot":
            self.source.snapshot_asked = True
        else:
            super().order(name, values)

    def report(self) -> dict[str, Any]:
        """Return small facts about the source."""
        batches = self.source.batches
        return super().report() | {
            "num_batches": self.source.num_batches,
            "batches_per_epoch": batches.batches_per_epoch,
        }
