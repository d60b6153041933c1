"""What a block does, in order, without doing any of the waiting: a generator of Receive and Send.

For every batch t: late inputs due before t in fixed order, orders of batch t-1, the driver of t, the
rule's `now`, Send, and the update when the batch's last credit has come. After the last batch: all
outstanding late inputs, then its orders. Every read blocks and has a fixed place, so the result does
not depend on timing, buffer sizes, or on who runs the program.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from actors.block import Block, Evaluation
from actors.edges import BlockEdges
from actors.errors import MispairedMessage
from actors.learning_rule import Sent
from actors.messages import Flags, Kind, Message
from actors.times import Times


@dataclass(frozen=True)
class Receive:
    """Wait for the next message of an edge."""

    edge: str
    share: str = "wait_input"


@dataclass(frozen=True)
class Send:
    """Put a message on an edge; waits while its outbox is full."""

    edge: str
    message: Message


@dataclass(frozen=True)
class Close:
    """Nothing follows on an edge."""

    edge: str


Program = Generator[Receive | Send | Close, Message, None]


class BlockProgram:
    """The program of one block.

    Args:
        block: what computes.
        edges: the block's edges.
        times: told what the compute thread is busy with.
        snapshot: called at the position of a batch that carries the order.
        report: called with the sums of an evaluated split.
    """

    def __init__(
        self,
        block: Block,
        edges: BlockEdges,
        times: Times,
        *,
        snapshot: Callable[[int], None],
        report: Callable[[Evaluation], None],
        trained: Callable[[Message], None],
    ) -> None:
        self.block, self.edges, self.times = block, edges, times
        self.snapshot, self.report, self.trained = snapshot, report, trained
        self._first: int | None = None
        self._next = 0
        self._flags: dict[int, Flags] = {}

    def run(self) -> Program:
        """Yield the block's operations, from its first message to its last."""
        orders = Flags.NONE
        while not orders & Flags.LAST:
            yield from self._late_inputs(self._next)
            self._obey(orders)
            message = yield from self._driver()
            if message is None:
                break
            orders = message.flags
            yield from self._train(message)
        if orders & Flags.LAST:
            yield from self._drain()
            self._obey(orders)
            yield from self._driver()
        for edge in [self.edges.up, self.edges.done, *self._down_edges()]:
            if edge is not None:
                yield Close(edge)

    def _driver(self) -> Generator[Receive | Send | Close, Message, Message | None]:
        """Return the next batch to train on; evaluation batches before it are passed on."""
        while True:
            message = yield Receive(self.edges.driver)
            if message.kind is Kind.EVALUATION:
                yield from self._evaluate(message)
            elif message.kind is Kind.ACTIVATION:
                self._check_order(message)
                return message
            else:
                if self.edges.up is not None:
                    yield Send(self.edges.up, Message(Kind.END, message.batch_id, self.block.version))
                return None

    def _check_order(self, message: Message) -> None:
        if self._first is None:
            self._first = self._next = message.batch_id
        if message.batch_id != self._next:
            raise MispairedMessage(
                f"edge {self.edges.driver}: got batch {message.batch_id}, expected {self._next}; "
                f"nothing was trained on it"
            )
        self._next += 1
        self._flags[message.batch_id] = message.flags

    def _train(self, message: Message) -> Program:
        self.trained(message)
        with self.times.within("compute"):
            sent = self.block.now(message)
        labels = {name: tensor for name, tensor in message.tensors.items() if name != "h"}
        if self.edges.up is not None and sent.up is not None:
            yield Send(
                self.edges.up,
                Message(
                    Kind.ACTIVATION, message.batch_id, self.block.version,
                    message.flags, {"h": sent.up, **labels},
                ),
            )  # fmt: skip
        yield from self._send_down(sent, message.batch_id)
        self.block.finish_use()
        yield from self._complete(sent, message.batch_id)

    def _late_inputs(self, t: int) -> Program:
        for late in self.edges.late:
            due = t - late.delay
            if self._first is not None and due >= self._first and due < self._next:
                message = yield Receive(late.edge, "wait_feedback")
                with self.times.within("compute"):
                    sent = self.block.later(late.origin, message, due)
                yield from self._send_down(sent, due)
                yield from self._complete(sent, due)

    def _drain(self) -> Program:
        """Handle all outstanding late inputs as if further batches followed."""
        longest = max((late.delay for late in self.edges.late), default=0)
        for t in range(self._next, self._next + longest):
            yield from self._late_inputs(t)

    def _complete(self, sent: Sent, batch_id: int) -> Program:
        if not sent.complete:
            return
        flags = self._flags.pop(batch_id)
        with self.times.within("compute"):
            self.block.update(flags)
        if self.edges.done is not None:
            yield Send(self.edges.done, Message(Kind.DONE, batch_id, self.block.version))

    def _send_down(self, sent: Sent, batch_id: int) -> Program:
        for origin, tensors in sent.down.items():
            for edge in self.edges.down.get(origin, ()):
                yield Send(edge, Message(Kind.FEEDBACK, batch_id, self.block.version, tensors=tensors))

    def _evaluate(self, message: Message) -> Program:
        with self.times.within("evaluate"):
            h, evaluation = self.block.evaluate(message)
        if evaluation is not None:
            self.report(evaluation)
        if self.edges.up is not None:
            labels = {name: tensor for name, tensor in message.tensors.items() if name != "h"}
            yield Send(
                self.edges.up,
                Message(
                    Kind.EVALUATION, message.batch_id, self.block.version,
                    message.flags, {"h": h, **labels}, message.split,
                ),
            )  # fmt: skip

    def _obey(self, orders: Flags) -> None:
        if orders & Flags.SNAPSHOT:
            with self.times.within("snapshot"):
                self.snapshot(self._next - 1)

    def _down_edges(self) -> list[str]:
        return sorted({edge for edges in self.edges.down.values() for edge in edges})
