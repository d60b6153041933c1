"""What the source does, in order: batches with their orders, evaluation batches, the end.

Like a block's program it never waits itself. Under `lockstep` it reads every block's word that a batch
is finished before it sends the next one.
"""

from __future__ import annotations

from collections.abc import Callable

from actors.datasets.batches import Batch as DataBatch
from actors.datasets.batches import EvalBatches, TrainBatches
from actors.edges import SourceEdges
from actors.messages import Flags, Kind, Message
from actors.operations import Close, Receive, Rest, Send
from actors.program import Program
from actors.snapshot_orders import SnapshotOrders
from actors.times import Times

PAUSE_S = 0.1
"""How often a paused source looks whether it may go on."""


class SourceProgram:
    """The program of the data actor.

    Args:
        batches: the training batches, seekable.
        splits: what is evaluated, by name.
        edges: where batches leave.
        evaluate_every: training batches between two evaluations; None: only at the end.
        stop_asked: asked before every batch; True makes the batch after that the last one.
        is_paused: asked before every batch; no batch leaves while it is True.
        times: told what the thread is busy with.
        num_batches: batches of the run; default: all that `batches` has.
        snapshots: when a batch carries that order.
        snapshot: called with batch id and orders when such a batch has left.
    """

    def __init__(
        self,
        batches: TrainBatches,
        splits: dict[str, EvalBatches],
        edges: SourceEdges,
        times: Times,
        *,
        evaluate_every: int | None,
        stop_asked: Callable[[], bool],
        is_paused: Callable[[], bool] = bool,
        num_batches: int | None = None,
        snapshots: SnapshotOrders | None = None,
        snapshot: Callable[[int, Flags], None] = lambda batch_id, orders: None,
    ) -> None:
        self.batches, self.splits, self.edges, self.times = batches, splits, edges, times
        self.evaluate_every, self.stop_asked = evaluate_every, stop_asked
        self.version = 0
        self.is_paused = is_paused
        self.snapshots = snapshots or SnapshotOrders()
        self.snapshot = snapshot
        self.num_batches = batches.num_batches if num_batches is None else num_batches
        self.last_batch: int | None = None
        """What an earlier life has sent as the last one."""
        self._is_stopping = False
        self._restored: Flags | None = None

    def restore(self, batch_id: int, orders: Flags) -> None:
        """Let `run` go on after batch `batch_id` has left with its orders, before its evaluation batches."""
        self.version, self._restored = batch_id + 1, orders
        self.snapshots.committed = batch_id

    def run(self) -> Program:
        """Yield the source's operations."""
        last = self.batches.num_batches - 1
        orders = Flags.NONE
        if self._restored is not None:
            orders = self._restored
            yield from self._after(self.version - 1, orders)
        stream = self.batches.stream(self.version) if self.version <= last else iter(())
        while self.version <= last and not orders & Flags.LAST:
            batch_id = self.version
            self.times.at(batch_id)
            with self.times.within("compute"):
                batch = next(stream)
            yield from self._pause()
            orders = self._orders(batch_id, batch_id == last)
            yield from self._send(Kind.ACTIVATION, batch, batch_id, orders)
            for edge in self.edges.raw:
                yield Send(edge, self._message(Kind.ACTIVATION, batch, batch_id, orders))
            self.version = batch_id + 1
            if orders & Flags.SNAPSHOT:
                self.snapshot(batch_id, orders)
            yield from self._after(batch_id, orders)
        for edge in (*self.edges.up, *self.edges.raw):
            yield Send(edge, Message(Kind.END, self.version, self.version))
            yield Close(edge)

    def _after(self, batch_id: int, orders: Flags) -> Program:
        if orders & Flags.EVALUATE:
            yield from self._evaluate(batch_id)
        yield from self._wait_until_done(batch_id)

    def _pause(self) -> Program:
        while self.is_paused():
            yield Rest(PAUSE_S)
        while self.snapshots.must_wait(self.version):
            yield Rest(PAUSE_S, "(a checkpoint)")

    def _orders(self, batch_id: int, is_last: bool) -> Flags:
        """A run that is stopped takes a snapshot to go on from, then ends with the next batch, which drains it."""
        evaluate = Flags.EVALUATE if self.splits else Flags.NONE
        if is_last or self._is_stopping or batch_id == self.last_batch:
            return Flags.LAST | Flags.SNAPSHOT | evaluate
        self._is_stopping = self.stop_asked() and self.last_batch is None
        if self.evaluate_every is None or (batch_id + 1) % self.evaluate_every:
            evaluate = Flags.NONE
        due = self.snapshots.due(batch_id, is_evaluated=bool(evaluate)) or self._is_stopping
        return evaluate | (Flags.SNAPSHOT if due else Flags.NONE)

    def _send(self, kind: Kind, batch: DataBatch, batch_id: int, flags: Flags, split: str = "") -> Program:
        for edge in self.edges.up:
            yield Send(edge, self._message(kind, batch, batch_id, flags, split))

    def _message(self, kind: Kind, batch: DataBatch, batch_id: int, flags: Flags, split: str = "") -> Message:
        tensors = {"h": batch.inputs, "labels": batch.labels}
        return Message(kind, batch_id, self.version, flags, tensors, split)

    def _evaluate(self, batch_id: int) -> Program:
        for name, batches in self.splits.items():
            for index in range(batches.num_batches):
                with self.times.within("evaluate"):
                    batch = batches.batch(index)
                flags = Flags.SPLIT_END if index == batches.num_batches - 1 else Flags.NONE
                if flags and name == next(reversed(self.splits)):
                    flags |= Flags.EVALUATION_END
                yield from self._send(Kind.EVALUATION, batch, batch_id, flags, name)

    def _wait_until_done(self, batch_id: int) -> Program:
        for edge in self.edges.done:
            message = yield Receive(edge, "wait_feedback")
            assert message.batch_id == batch_id, f"edge {edge}: batch {message.batch_id} done, not {batch_id}"
