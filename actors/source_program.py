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
        stop_asked: asked before every batch; True makes that batch the last one.
        is_paused: asked before every batch; no batch leaves while it is True.
        times: told what the thread is busy with.
        first_batch: where to begin.
        num_batches: batches of the run; default: all that `batches` has.
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
        first_batch: int = 0,
        num_batches: int | None = None,
    ) -> None:
        self.batches, self.splits, self.edges, self.times = batches, splits, edges, times
        self.evaluate_every, self.stop_asked, self.first_batch = evaluate_every, stop_asked, first_batch
        self.version = first_batch
        self.is_paused = is_paused
        self.snapshot_asked = False
        self.num_batches = batches.num_batches if num_batches is None else num_batches

    def run(self) -> Program:
        """Yield the source's operations."""
        last = self.batches.num_batches - 1
        stream = self.batches.stream(self.first_batch)
        for batch_id in range(self.first_batch, self.batches.num_batches):
            self.times.at(batch_id)
            with self.times.within("compute"):
                batch = next(stream)
            yield from self._pause()
            is_last = batch_id == last or self.stop_asked()
            orders = self._orders(batch_id, is_last)
            yield from self._send(Kind.ACTIVATION, batch, batch_id, orders)
            for edge in self.edges.raw:
                yield Send(edge, self._message(Kind.ACTIVATION, batch, batch_id, orders))
            self.version = batch_id + 1
            if orders & Flags.EVALUATE:
                yield from self._evaluate(batch_id)
            yield from self._wait_until_done(batch_id)
            if is_last:
                break
        for edge in (*self.edges.up, *self.edges.raw):
            yield Send(edge, Message(Kind.END, self.version, self.version))
            yield Close(edge)

    def _pause(self) -> Program:
        while self.is_paused():
            yield Rest(PAUSE_S)

    def _orders(self, batch_id: int, is_last: bool) -> Flags:
        evaluate = Flags.EVALUATE if self.splits else Flags.NONE
        if is_last:
            return Flags.LAST | Flags.SNAPSHOT | evaluate
        asked = Flags.SNAPSHOT if self.snapshot_asked else Flags.NONE
        self.snapshot_asked = False
        if self.evaluate_every is not None and (batch_id + 1) % self.evaluate_every == 0:
            return asked | evaluate
        return asked

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
