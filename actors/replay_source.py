"""The source under `replay`: it feeds the first block until that says that nothing more is needed."""

from __future__ import annotations

from actors.messages import Flags, Kind, Message
from actors.operations import AwaitStop, Close, HasStopped, Rest, Send
from actors.program import Program
from actors.source_program import PAUSE_S, SourceProgram


class ReplaySource(SourceProgram):
    """Sends batches in their order as long as there are any; the last orders come when all blocks have stopped.

    `batches` may go on after `num_batches`, for blocks that are behind; evaluations go on with them.
    """

    repeats = True
    """Whether further epochs follow until the blocks have enough; else only once a block has lost some."""

    def run(self) -> Program:
        """Yield the source's operations."""
        (edge,) = self.edges.up
        covered = self.version - 1 if self._restored is not None else -1
        if self._restored is not None and self._restored & Flags.EVALUATE:
            yield from self._evaluate(self.version - 1)
        for batch_id, batch in enumerate(self.batches.stream(self.version), self.version):
            self.times.at(batch_id)
            yield from self._pause()
            while not (self.repeats or batch_id < self.num_batches or self.stop_asked() or (yield HasStopped(edge))):
                yield Rest(PAUSE_S, edge)
            if self.stop_asked() or (yield HasStopped(edge)):
                break
            orders = self._orders(batch_id, False)
            yield from self._send(Kind.ACTIVATION, batch, batch_id, Flags.NONE)
            self.version = batch_id + 1
            if orders & Flags.SNAPSHOT:
                yield Send(edge, Message(Kind.ORDERS, batch_id, self.version, Flags.SNAPSHOT))
                self.snapshot(batch_id, orders)
                covered = batch_id
            if orders & Flags.EVALUATE:
                yield from self._evaluate(batch_id)
        if not self.stop_asked():
            yield AwaitStop(edge)
        position = max(self.version - 1, covered + 1)  # blocks have trained since: another place than the one before
        last = Flags.LAST | Flags.SNAPSHOT
        yield Send(edge, Message(Kind.ORDERS, position, self.version, last))
        self.snapshot(position, last)
        yield from self._evaluate(position)
        yield Send(edge, Message(Kind.END, self.version, self.version))
        yield Close(edge)
