"""What a block does, in order, without doing any of the waiting: a generator of Receive and Send.

For every batch t: late inputs due before t in fixed order, orders of batch t-1, the driver of t, the
rule's `now`, Send, and the update when the batch's last credit has come. After the last batch: all
outstanding late inputs, then its orders. Every read blocks and has a fixed place, so the result does
not depend on timing, buffer sizes, or on who runs the program.

Under `sequential` a block trains in its own phase only: before, it passes orders on; afterwards it is
frozen and passes activations on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from actors.block import Block
from actors.edges import BlockEdges, LateInput
from actors.errors import MispairedMessage
from actors.evaluation import Evaluation
from actors.learning_rule import Sent
from actors.messages import Flags, Kind, Message, from_plain, to_plain
from actors.operations import Close, Operation, Pace, Receive, Send
from actors.times import Times

Program = Generator[Operation, Any, None]
Getting = Generator[Operation, Any, Message | None]


class BlockProgram:
    """The program of one block.

    Args:
        block: what computes.
        edges: the block's edges.
        times: told what the compute thread is busy with.
        snapshot: called at the position of a batch that carries the order, with all its orders.
        report: called with the sums of an evaluated split.
        trained: called with every message that training starts on, and its edge; a late activation's among them.
        is_paced: whether a staleness bound holds between this block and the next.
    """

    def __init__(
        self,
        block: Block,
        edges: BlockEdges,
        times: Times,
        *,
        snapshot: Callable[[int, Flags], None],
        report: Callable[[Evaluation], None],
        trained: Callable[[Message, str], None],
        is_paced: Callable[[], bool] = bool,
    ) -> None:
        self.block, self.edges, self.times = block, edges, times
        self.is_paced = is_paced
        self.snapshot, self.report, self.trained = snapshot, report, trained
        self._phase_batches = block.spec.phase_batches
        self._first: int | None = None
        self._next = 0
        self._flags: dict[int, Flags] = {}
        self._ahead: deque[Message] = deque()
        self._orders = Flags.NONE
        """Of the newest batch that was trained on."""
        self._is_restored = False

    @property
    def last_batch(self) -> int | None:
        """The batch that came as the last one, None as long as others may follow."""
        return self._next - 1 if self._orders & Flags.LAST else None

    def state(self) -> dict[str, Any]:
        """Return where the program is; meaningful at a position only."""
        return {
            "first": self._first,
            "next": self._next,
            "orders": int(self._orders),
            "flags": [[batch, int(flags)] for batch, flags in self._flags.items()],
            "ahead": [to_plain(message) for message in self._ahead],
        }

    def restore(self, state: Mapping[str, Any], *, goes_on: bool = False) -> None:
        """Let `run` go on after the position that `state` is of.

        `goes_on`: training had ended there, with all late inputs handled, and goes on with the next batch.
        """
        self._first, self._next, self._orders = state["first"], state["next"], Flags(state["orders"])
        self._flags = {batch: Flags(flags) for batch, flags in state["flags"]}
        self._ahead = deque(from_plain(plain) for plain in state["ahead"])
        self._is_restored = True
        if goes_on:
            self._first, self._orders = None, Flags.NONE

    def run(self) -> Program:
        """Yield the block's operations, from its first message to its last, or from where it was restored."""
        orders = self._orders
        while not orders & Flags.LAST:
            if not self._is_restored:
                yield from self._late_inputs(self._next)
                self._obey(orders, self._next - 1)
            self._is_restored = False
            yield from self._evaluate_in_place(orders)
            message = yield from self._driver()
            if message is None:
                break
            orders = self._orders = message.flags
            yield from self._train(message)
        if orders & Flags.LAST:
            if not self._is_restored:
                yield from self._drain()
                self._obey(orders, self._next - 1)
            yield from self._evaluate_in_place(orders)
            yield from self._driver()
        if self.edges.late_activation is not None:
            yield from self._activation_of(None)
        if self.edges.raw not in (None, self.edges.driver):
            yield Receive(self.edges.raw)  # its end
        for edge in [self.edges.up, self.edges.done, *self._down_edges()]:
            if edge is not None:
                if edge == self.edges.up:
                    yield Send(edge, Message(Kind.END, self._next, self.block.version))
                yield Close(edge)

    def account(self, edge: str, handled: int) -> dict[str, Any]:
        """Return the state of everything that came on an edge.

        Args:
            edge: an incoming edge.
            handled: messages of it that the program has come back from.
        """
        late = self.edges.late_activation
        held = len(self._ahead) if late is not None and edge == late.edge else 0
        return {"trained": handled - held, "held": held, "dropped": {}}

    # ------------------------------------------------------------------ what drives a batch

    def _driver(self) -> Getting:
        """Return the next batch to train on; everything before it is evaluated or passed on."""
        while True:
            self.times.at(self._next)
            message = yield Receive(self.edges.driver)
            if message.kind is Kind.EVALUATION:
                yield from self._evaluate(message)
            elif message.kind is Kind.ORDERS:
                yield from self._pass_on_orders(message)
            elif message.kind is Kind.ACTIVATION and self._is_frozen(message):
                yield from self._pass_on(message)
            elif message.kind is Kind.ACTIVATION:
                self._check_order(message)
                return message
            else:
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
        self._flags = {batch: flags for batch, flags in self._flags.items() if batch in self.block.open}
        self._flags[message.batch_id] = message.flags | (
            Flags.LAST if self._phase(message.batch_id + 1) > self.block.place.index else Flags.NONE
        )

    def _raw_input(self, batch_id: int) -> Generator[Receive, Message, Tensor | None]:
        """Return the network's input of a batch, from the source's own line to this block."""
        if self.edges.raw is None or self.edges.raw == self.edges.driver:
            return None
        message = yield Receive(self.edges.raw)
        if message.batch_id != batch_id:
            raise MispairedMessage(
                f"edge {self.edges.raw}: got batch {message.batch_id}, expected {batch_id}; nothing was trained on it"
            )
        return message.tensors["h"]

    # ------------------------------------------------------------------ training

    def _train(self, message: Message) -> Program:
        self.times.at(message.batch_id)
        raw = yield from self._raw_input(message.batch_id)
        self.trained(message, self.edges.driver)
        with self.times.within("compute", "forward"):
            up = self.block.forward(message, raw)
        if self.edges.up is not None:
            yield from self._send_up(message, up)
        with self.times.within("compute", "learn"):
            sent = self.block.learn(self._with_flags(message))
        yield from self._send_down(sent, message.batch_id)
        if self.edges.up is not None and self._phase_batches is None and self.is_paced():
            yield Pace(self.edges.up, self.block.version)
        self.block.finish_use()
        yield from self._updates(sent, message.batch_id)

    def _with_flags(self, message: Message) -> Message:
        """Return a batch with the flags that hold in this block: in phases it may be the block's last one."""
        flags = self._flags[message.batch_id]
        return message if flags == message.flags else replace(message, flags=flags)

    def _send_up(self, message: Message, up: Tensor) -> Program:
        assert self.edges.up is not None
        if self._phase_batches is not None:  # the next block's phase has not begun
            yield from self._pass_on_orders(message)
        else:
            labels = {name: tensor for name, tensor in message.tensors.items() if name != "h"}
            yield Send(
                self.edges.up,
                Message(
                    Kind.ACTIVATION, message.batch_id, self.block.version,
                    message.flags, {"h": up, **labels},
                ),
            )  # fmt: skip

    def _late_inputs(self, t: int) -> Program:
        for late in self.edges.late:
            due = t - late.delay
            if self._is_trained(due):
                self.times.at(t, due)
                message = yield Receive(late.edge, "wait_feedback")
                with self.times.within("compute", "feedback"):
                    sent = self.block.later(late.origin, message, due)
                yield from self._send_down(sent, due)
                yield from self._updates(sent, due)
        late = self.edges.late_activation
        if late is not None and self._is_trained(t - late.delay):
            self.times.at(t, t - late.delay)
            yield from self._late_activation(late, t - late.delay)

    def _late_activation(self, late: LateInput, due: int) -> Program:
        message = yield from self._activation_of(due)
        assert message is not None, f"edge {late.edge}: ended before batch {due}"
        self.trained(message, late.edge)
        with self.times.within("compute", "late_activation"):
            sent = self.block.late_activation(message, due)
        yield from self._updates(sent, due)

    def _activation_of(self, due: int | None) -> Getting:
        """Return the predecessor's late activation of a batch, or None at the end of its edge."""
        assert self.edges.late_activation is not None
        message = self._ahead.popleft() if self._ahead else (yield Receive(self.edges.late_activation.edge))
        return message if message.kind is Kind.ACTIVATION and due is not None else None

    def _evaluate_in_place(self, orders: Flags) -> Program:
        """Where the raw input drives, run a position's evaluation batches before the next batch.

        They come on the predecessor's line, behind activations that may not be due yet.
        """
        late = self.edges.late_activation
        is_over = late is None or not orders & Flags.EVALUATE
        while late is not None and not is_over:
            message = yield Receive(late.edge)
            if message.kind is Kind.EVALUATION:
                yield from self._evaluate(message)
                is_over = bool(message.flags & Flags.EVALUATION_END)
            else:
                self._ahead.append(message)

    def _is_trained(self, batch_id: int) -> bool:
        return self._first is not None and self._first <= batch_id < self._next

    def _drain(self) -> Program:
        """Handle all outstanding late inputs as if further batches followed."""
        activation = self.edges.late_activation
        delays = [late.delay for late in self.edges.late] + ([activation.delay] if activation else [])
        for t in range(self._next, self._next + max(delays, default=0)):
            yield from self._late_inputs(t)

    def _updates(self, sent: Sent, batch_id: int) -> Program:
        flags = self._flags.get(batch_id, Flags.NONE)
        if sent.taught:
            with self.times.within("compute", "update"):
                self.block.update_synthesizer(flags)
        if sent.complete:
            with self.times.within("compute", "update"):
                self.block.update(flags)
            if self.edges.done is not None:
                yield Send(self.edges.done, Message(Kind.DONE, batch_id, self.block.version))

    def _send_down(self, sent: Sent, batch_id: int) -> Program:
        for origin, tensors in sent.down.items():
            for edge in self.edges.down.get(origin, ()):
                yield Send(edge, Message(Kind.FEEDBACK, batch_id, self.block.version, tensors=tensors))

    # ------------------------------------------------------------------ phases

    def _phase(self, batch_id: int) -> int:
        """Return the index of the block that trains on a batch."""
        return self.block.place.index if self._phase_batches is None else batch_id // self._phase_batches

    def _is_frozen(self, message: Message) -> bool:
        return self._phase(message.batch_id) > self.block.place.index

    def _pass_on(self, message: Message) -> Program:
        """Forward a batch that a later block trains on, in evaluation mode."""
        assert self.edges.up is not None
        self.times.at(message.batch_id)
        yield from self._raw_input(message.batch_id)
        self.block.train(False)
        with self.times.within("compute", "forward"):
            h = self.block.forward_frozen(message)
        yield Send(self.edges.up, replace(message, version=self.block.version, tensors={**message.tensors, "h": h}))
        self._obey(message.flags, message.batch_id)

    def _pass_on_orders(self, message: Message) -> Program:
        """Tell the blocks whose phase has not begun of a batch and its orders; obey, if this is one of them.

        They hear of every batch, so that a chain in which nothing moves can be told from one that trains below.
        """
        if self.edges.up is not None:
            orders = message.flags & ~Flags.EVALUATE
            yield Send(self.edges.up, Message(Kind.ORDERS, message.batch_id, self.block.version, orders))
        if message.kind is Kind.ORDERS:
            yield from self._raw_input(message.batch_id)
            self._obey(message.flags, message.batch_id)

    # ------------------------------------------------------------------ orders

    def _evaluate(self, message: Message) -> Program:
        self.times.at(message.batch_id)
        with self.times.within("evaluate"):
            tensors, evaluation = self.block.evaluate(message)
        if evaluation is not None:
            self.report(evaluation)
        if self.edges.up is not None and (self._phase_batches is None or self._is_frozen(message)):
            yield Send(
                self.edges.up,
                Message(
                    Kind.EVALUATION, message.batch_id, self.block.version,
                    message.flags, tensors, message.split,
                ),
            )  # fmt: skip

    def _obey(self, orders: Flags, position: int) -> None:
        if orders & Flags.SNAPSHOT:
            self.times.at(position)
            with self.times.within("snapshot"):
                self.snapshot(position, orders)

    def _down_edges(self) -> list[str]:
        return sorted({edge for edges in self.edges.down.values() for edge in edges})
