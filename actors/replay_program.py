"""What a block does when it never waits for order: it trains on whatever its replay buffer allows.

    train   fetch what has arrived, handle feedback that has arrived, train on one message, send on, again;
            until there have been enough updates, or no more feedback can come: whoever sends it has had enough
    serve   after its last update: forward in evaluation mode until everything above has trained enough
    idle    tell the producer that nothing more is needed; take what still comes until the last orders

Not deterministic across schedulers: what has arrived by a step depends on timing. Evaluation batches and
orders act when they arrive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from actors.block import Block
from actors.edges import BlockEdges, LateInput
from actors.evaluation import Evaluation
from actors.learning_rule import Sent
from actors.messages import Flags, Kind, Message, from_plain, num_bytes, to_plain
from actors.needs import Feedback
from actors.operations import (
    Close,
    HasEnded,
    HasStopped,
    Hear,
    Operation,
    Pace,
    Poll,
    Receive,
    ReceiveAny,
    Rest,
    Send,
    Stop,
)
from actors.replay_buffer import ReplayBuffer, ReplaySettings
from actors.source_program import PAUSE_S
from actors.times import Times

Program = Generator[Operation, object, None]

SLICE_S = 0.05
"""Seconds that a block waits for room before it looks for feedback again."""
TOO_OLD = "too old after a restart"
"""Why a restored block drops what its snapshot held, or what comes again: its producer has gone on meanwhile."""


class ReplayProgram:
    """The program of one block under `replay`, or under `pipeline` with feedback as it arrives.

    Args:
        block: what computes.
        edges: the block's edges.
        times: told what the compute thread is busy with.
        buffer: where arrivals wait to be trained on.
        bound: returns S, the staleness bound of the driving edge; None: no bound.
        num_batches: how many batches must have had their last credit before the block has trained enough.
        max_open: passes that wait for feedback; the oldest is given up for a new one.
        producer_version: returns how far the producer of the driving edge is known to be.
        promise: told the version below which nothing will be trained on again.
        snapshot, report, trained: as in `BlockProgram`.
        is_paused: asked before every use; none begins while it is True.
    """

    def __init__(
        self,
        block: Block,
        edges: BlockEdges,
        times: Times,
        buffer: ReplayBuffer[Message],
        *,
        bound: Callable[[], int | None],
        num_batches: int,
        max_open: int,
        producer_version: Callable[[], int],
        promise: Callable[[int], None],
        snapshot: Callable[[int, Flags], None],
        report: Callable[[Evaluation], None],
        trained: Callable[[Message], None],
        is_paused: Callable[[], bool] = bool,
    ) -> None:
        self.block, self.edges, self.times, self.buffer = block, edges, times, buffer
        self.bound, self.num_batches, self.max_open = bound, num_batches, max_open
        self.producer_version, self.promise = producer_version, promise
        self.snapshot, self.report, self.trained, self.is_paused = snapshot, report, trained, is_paused
        self.expired: Counter[str] = Counter()
        self.new_settings: ReplaySettings | None = None
        """Set from another thread: how the buffer goes on from the next use."""
        self.num_complete = 0
        self.num_passed = 0
        """Messages of the driving edge that were evaluated, obeyed or passed on."""
        self._waiting: Message | None = None
        self._drivers: dict[int, Message] = {}
        self._has_ended = False
        self._unanswered: set[str] = set()
        """Edges on which no more feedback will come."""

    def run(self) -> Program:
        """Yield the block's operations, from its first message to its last."""
        yield from self._keep_earlier_promises()
        while not self._has_enough and not self._has_ended:
            if self.new_settings is not None:
                self.buffer.resize(self.new_settings)
                self.new_settings = None
            yield from self._pause()
            yield from self._feedback()
            yield from self._fetch(wait=not self.buffer.can_sample())
            if self.buffer.can_sample() and not self._has_ended:
                yield from self._train()
        self.buffer.discard("not needed")
        for edge in self._down():
            yield Close(edge)
        yield from self._serve()
        yield Stop(self.edges.driver)
        while not self._has_ended:
            message = yield Receive(self.edges.driver)
            assert isinstance(message, Message)
            yield from self._handle(message)
        if self.edges.up is not None:
            yield Close(self.edges.up)

    def _pause(self) -> Program:
        while self.is_paused():
            yield Rest(PAUSE_S)

    def account(self, edge: str, handled: int) -> dict[str, Any]:
        """Return the state of everything that came on an edge.

        Args:
            edge: an incoming edge.
            handled: messages of it that the program has come back from.
        """
        if edge != self.edges.driver:
            expired = self.expired[edge]
            return {"trained": handled - expired, "held": 0, "dropped": {"expired": expired}}
        trained = self.buffer.trained + self.num_passed
        held = len(self.buffer) + (self._waiting is not None)
        return {"trained": trained, "held": held, "dropped": dict(self.buffer.dropped)}

    def state(self) -> dict[str, Any]:
        """Return where the program is, what waits to be trained on, and what drove the open passes."""
        return {
            "buffer": self.buffer.state(to_plain),
            "num_batches": self.num_batches,
            "num_complete": self.num_complete,
            "num_passed": self.num_passed,
            "expired": dict(self.expired),
            "waiting": None if self._waiting is None else to_plain(self._waiting),
            "drivers": [[use, to_plain(message)] for use, message in self._drivers.items()],
        }

    def restore(self, state: Mapping[str, Any], *, goes_on: bool = False) -> None:
        """Let `run` go on from where `state` was taken; `goes_on`: to further batches, if training had ended there."""
        self.buffer.restore(state["buffer"], from_plain)
        self.num_batches = self.num_batches if goes_on else state["num_batches"]
        self.num_complete = state["num_complete"]
        self.num_passed, self.expired = state["num_passed"], Counter(state["expired"])
        self._waiting = None if state["waiting"] is None else from_plain(state["waiting"])
        self._drivers = {use: from_plain(plain) for use, plain in state["drivers"]}

    @property
    def _has_enough(self) -> bool:
        return self.num_complete >= self.num_batches

    # ------------------------------------------------------------------ arrivals

    def _fetch(self, *, wait: bool) -> Program:
        """Put what has arrived into the buffer as long as that takes any; wait for the first if told to.

        Of the source a block takes one batch per use: it has always another one, which the buffer would only drop
        (asynchronous DGL draws each batch of its first module from the data: 1901.08164, algorithm 2).
        """
        while not self._has_ended and not self._has_enough and self.buffer.takes():
            message = self._waiting
            if message is None:
                message = yield from self._arrival(wait)
            self._waiting = None
            if message is None:
                break
            if message.kind is Kind.ACTIVATION and not self.buffer.fits(num_bytes(message.tensors)):
                self._waiting = message
                break
            yield from self._handle(message)
            wait = wait and not self.buffer.can_sample()
            if self.block.place.is_first and message.kind is Kind.ACTIVATION and self.buffer.can_sample():
                break
        self._promise()

    def _arrival(self, wait: bool) -> Generator[Operation, object, Message | None]:
        """Return the next message of the driving edge; feedback that comes first is handled."""
        if not wait:
            message = yield Poll(self.edges.driver)
            assert message is None or isinstance(message, Message)
            return message
        while True:
            edges = (self.edges.driver, *(late.edge for late in self.edges.late))
            answer = yield ReceiveAny(edges)
            assert isinstance(answer, tuple)
            edge, message = answer
            if edge == self.edges.driver:
                return message
            yield from self._apply(self._late(edge), message)
            if self._has_enough:
                return None

    def _handle(self, message: Message) -> Program:
        """Take in one message of the driving edge."""
        self.num_passed += message.kind is not Kind.ACTIVATION
        if message.kind is Kind.EVALUATION:
            yield from self._evaluate(message)
        elif message.kind is Kind.ORDERS:
            yield from self._orders(message)
        elif message.kind is Kind.ACTIVATION and self.buffer.is_old(message.version):
            self.buffer.dropped["made again"] += 1  # by a producer that goes on from its last snapshot
        elif message.kind is Kind.ACTIVATION and self.buffer.is_retired(message.version):
            self.buffer.dropped[TOO_OLD] += 1
        elif message.kind is Kind.ACTIVATION:
            self.buffer.insert(message, message.version, num_bytes(message.tensors))
            if self._has_enough:
                self.buffer.discard("not needed")
        else:
            self._has_ended = True
            yield from self._pass_on(Message(Kind.END, message.batch_id, self.block.version))

    def _keep_earlier_promises(self) -> Program:
        """Drop what the life before would not have trained on any more: its producer has gone on from there."""
        if (bound := self.bound()) is not None:
            promised = yield Hear(self.edges.driver)
            assert isinstance(promised, int)
            self.buffer.retire(max(promised, self.producer_version() - 1 - bound), TOO_OLD)

    def _promise(self) -> None:
        self.promise(self.buffer.promise(self.producer_version(), self.bound()))

    # ------------------------------------------------------------------ training

    def _train(self) -> Program:
        bound = self.bound()
        needed = 0 if bound is None else self.producer_version() + 1 - bound
        message = self.buffer.sample(needed).item
        self.trained(message)
        self._promise()  # after the start: its producer may go on from here
        self.times.at(message.batch_id)
        with self.times.within("compute", "forward"):
            # The block knows a pass by the use, since a batch may be used again before its feedback has come.
            known = replace(message, batch_id=self.block.version, flags=Flags.NONE)
            up = self.block.forward(known)
        self._drivers[self.block.version] = message
        yield from self._send_up(message, up)
        with self.times.within("compute", "learn"):
            sent = self.block.learn(known)
        yield from self._send_down(sent, message)
        if self.edges.up is not None:
            yield from self._patiently(Pace(self.edges.up, self.block.version, SLICE_S))
        self.block.finish_use()
        self._updates(sent)
        self._give_up()

    def _patiently(self, operation: Send | Pace) -> Program:
        """Repeat an operation until it succeeds; feedback is handled meanwhile, so that no ring of blocks waits."""
        while not (yield operation):
            yield from self._feedback()

    def _send_up(self, message: Message, up: Tensor) -> Program:
        labels = {name: tensor for name, tensor in message.tensors.items() if name != "h"}
        tensors = {"h": up, **labels}
        yield from self._pass_on(Message(Kind.ACTIVATION, message.batch_id, self.block.version, tensors=tensors))

    def _pass_on(self, message: Message) -> Program:
        """Send a message to the next block, if there is one; whatever it is, feedback is handled while it waits."""
        if self.edges.up is not None:
            yield from self._patiently(Send(self.edges.up, message, SLICE_S))

    def _send_down(self, sent: Sent, answered: Message) -> Program:
        for origin, tensors in sent.down.items():
            for edge in self.edges.down.get(origin, ()):
                feedback = Message(
                    Kind.FEEDBACK, answered.batch_id, self.block.version, tensors=tensors, answers=answered.version
                )
                yield from self._patiently(Send(edge, feedback, SLICE_S))

    def _updates(self, sent: Sent) -> None:
        with self.times.within("compute", "update"):
            if sent.taught:
                self.block.update_synthesizer(Flags.NONE)
            if sent.complete:
                self.num_complete += 1
                self.block.update(Flags.LAST if self._has_enough else Flags.NONE)

    # ------------------------------------------------------------------ feedback

    def _feedback(self) -> Program:
        """Handle the feedback that has arrived."""
        for late in self.edges.late:
            while True:
                message = yield Poll(late.edge)
                if message is None:
                    break
                assert isinstance(message, Message)
                yield from self._apply(late, message)
            if (yield HasEnded(late.edge)):
                self._unanswered.add(late.edge)
        if self.edges.late and len(self._unanswered) == len(self.edges.late):
            self.num_batches = min(self.num_batches, self.num_complete)

    def _apply(self, late: LateInput, message: Message) -> Program:
        """Handle one answer; one whose pass is gone counts as expired.

        So does a second one from the same origin, which a block sends that has used an activation again.
        """
        use = self._answered(message)
        answered = self.block.open.get(use)
        if answered is None or late.origin in answered.answered:
            self.expired[late.edge] += 1
            return
        driver = self._drivers[use]
        with self.times.within("compute", "feedback"):
            sent = self.block.later(late.origin, replace(message, batch_id=use), use)
        yield from self._send_down(sent, driver)
        self._updates(sent)

    def _answered(self, message: Message) -> int:
        """The use that feedback answers: the next block names it, the last block knows the batch only."""
        if self.block.needs.feedback is Feedback.NEXT_BLOCK:
            return message.answers
        found = (use for use, driver in self._drivers.items() if driver.batch_id == message.batch_id)
        return next(found, -1)

    def _give_up(self) -> None:
        """Keep at most `max_open` passes, and what drove those that are still open."""
        while len(self.block.open) > self.max_open:
            del self.block.open[min(self.block.open)]
        self._drivers = {use: driver for use, driver in self._drivers.items() if use in self.block.open}

    def _forget_open(self) -> None:
        self.block.open.clear()
        self._drivers.clear()

    def _late(self, edge: str) -> LateInput:
        return next(late for late in self.edges.late if late.edge == edge)

    # ------------------------------------------------------------------ after the last update

    def _serve(self) -> Program:
        """Forward in evaluation mode until the next block has stopped, or the end has come."""
        self._forget_open()
        self.block.train(False)
        while self.edges.up is not None and not self._has_ended:
            yield from self._pause()
            if (yield HasStopped(self.edges.up)):
                return
            yield from self._feedback()
            message = yield Poll(self.edges.driver, wait_s=0.1)
            if message is None:
                continue
            assert isinstance(message, Message)
            if message.kind is not Kind.ACTIVATION:
                yield from self._handle(message)
                continue
            yield from self._forward(message)

    def _forward(self, message: Message) -> Program:
        assert self.edges.up is not None
        self.num_passed += 1
        self.promise(message.version + 1)
        with self.times.within("compute", "forward"):
            h = self.block.forward_frozen(message)
        tensors = {**message.tensors, "h": h}
        yield from self._pass_on(Message(Kind.ACTIVATION, message.batch_id, self.block.version, tensors=tensors))
        yield from self._patiently(Pace(self.edges.up, self.block.version, SLICE_S))
        self.block.finish_use()

    # ------------------------------------------------------------------ orders

    def _evaluate(self, message: Message) -> Program:
        with self.times.within("evaluate"):
            tensors, evaluation = self.block.evaluate(message)
        if evaluation is not None:
            self.report(evaluation)
        yield from self._pass_on(
            Message(Kind.EVALUATION, message.batch_id, self.block.version, message.flags, tensors, message.split)
        )

    def _orders(self, message: Message) -> Program:
        if message.flags & Flags.LAST:
            self.buffer.discard("not needed")
            self._forget_open()
            self.num_batches = self.num_complete
        if message.flags & Flags.SNAPSHOT:
            with self.times.within("snapshot"):
                self.snapshot(message.batch_id, message.flags)
        yield from self._pass_on(Message(Kind.ORDERS, message.batch_id, self.block.version, message.flags))

    def _down(self) -> list[str]:
        return sorted({edge for edges in self.edges.down.values() for edge in edges})
