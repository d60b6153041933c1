"""DataActor: the source of a chain. Seekable to any batch, so a new one can take over anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.chain_actor import ChainActor
from actors.datasets.batches import EvalBatches, TrainBatches
from actors.datasets.loading import load_data
from actors.edge_ends import MOST_POSITIONS
from actors.messages import Flags
from actors.program import Program
from actors.replay_source import ReplaySource
from actors.snapshot_orders import SnapshotOrders
from actors.source_program import SourceProgram
from actors.spec import SourceSpec

EPOCHS_WITHOUT_END = 10**6


class DataActor(ChainActor):
    """Feeds the first block, and whoever needs the raw input."""

    def __init__(self, spec: SourceSpec) -> None:
        restored = spec.restore
        super().__init__(spec, (*spec.edges.up, *spec.edges.raw), spec.settings, {}, restored and restored["actor"])
        self.spec = spec
        self._stop_asked = False
        self.positions: dict[int, dict[str, Any]] = {}
        """What a checkpoint says of the source, by position."""
        data = load_data(spec.data)
        num_batches = TrainBatches(data, spec.data, spec.epochs).num_batches
        epochs = EPOCHS_WITHOUT_END if spec.until_stopped else spec.epochs
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
            snapshots=SnapshotOrders(
                spec.snapshot_every,
                spec.most_uncovered,
                after_evaluation=spec.settings.retains,
                first_new=spec.first_new,
            ),
            snapshot=self._note_position,
        )
        if isinstance(self.source, ReplaySource):
            self.source.repeats = spec.repeats
        if restored is not None:
            orders = Flags.NONE if spec.goes_on else Flags(restored["orders"])
            self.source.restore(restored["batch"], orders)
        self.source.last_batch = spec.last_batch

    def _note_position(self, batch_id: int, orders: Flags) -> None:
        self.points.reach("snapshot", batch_id)
        self.positions[batch_id] = {"batch": batch_id, "orders": int(orders), "actor": self.state(batch_id)}
        while len(self.positions) > MOST_POSITIONS:
            del self.positions[min(self.positions)]

    @property
    def version(self) -> int:
        """Batches sent so far."""
        return self.source.version

    def program(self) -> Program:
        """Return the source's program."""
        return self.source.run()

    def order(self, name: str, values: Mapping[str, Any]) -> None:
        """Take an order.

        `stop`: the next batch is the last; `snapshot`: the next carries that order; `pause`: none follows;
        `repeat`: further batches make up for what was lost with an actor.
        """
        if name == "stop":
            self._stop_asked = True
        elif name == "snapshot":
            self.source.snapshots.is_asked = True
        elif name == "repeat" and isinstance(self.source, ReplaySource):
            self.source.repeats = True
        elif name == "commit":
            self.source.snapshots.committed = values["position"]
            super().order(name, values)
        else:
            super().order(name, values)

    def report(self) -> dict[str, Any]:
        """Return small facts about the source."""
        batches = self.source.batches
        return super().report() | {
            "num_batches": self.source.num_batches,
            "batches_per_epoch": batches.batches_per_epoch,
            "positions": dict(self.positions),
            "waits_for_checkpoint": self.source.snapshots.waits,
            "is_waiting_for_checkpoint": self.source.snapshots.is_waiting,
        }
