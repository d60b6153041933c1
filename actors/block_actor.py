"""BlockActor: a block, its edges and its snapshots."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from actors.block import Block
from actors.chain_actor import ChainActor
from actors.evaluation import Evaluation
from actors.messages import Flags, Message
from actors.program import BlockProgram, Program
from actors.replay_buffer import ReplayBuffer
from actors.replay_program import ReplayProgram
from actors.seeds import seed_of
from actors.shard import read_shard
from actors.snapshots import Snapshots
from actors.spec import BlockSpec, Replay
from actors.step_mark import open_step_mark
from actors.storage import open_storage
from actors.stretch import Slowness, Stretch
from actors.uses import Uses


def outgoing_edges(spec: BlockSpec) -> list[str]:
    """Return the names of the edges that a block produces."""
    down = {edge for edges in spec.edges.down.values() for edge in edges}
    return [edge for edge in (spec.edges.up, spec.edges.done, *sorted(down)) if edge is not None]


class BlockActor(ChainActor):
    """Trains one block.

    Args:
        spec: what to build.
        shape: shape of one sample of the block's input.
    """

    def __init__(self, spec: BlockSpec, shape: tuple[int, ...]) -> None:
        self._step_mark = open_step_mark(spec.step_mark)  # first: what fails from here on happens in no batch's step
        storage = None if spec.checkpoints is None else open_storage(spec.checkpoints)
        state: dict[str, Any] | None = None
        if spec.restore is not None:
            assert storage is not None, "a snapshot is read from where snapshots are written"
            state = read_shard(storage, spec.restore)
        super().__init__(spec, outgoing_edges(spec), spec.settings, _kept(spec), state and state["actor"])
        self.times.told = self._step_mark and self._step_mark.enter
        self.spec = spec
        self.block = Block(spec, shape)
        self.uses = Uses(self.times.elapsed)
        self.evaluations: list[Evaluation] = []
        self.replay: ReplayProgram | None = None
        self._program: BlockProgram | ReplayProgram | None = None
        self.hold(spec.bound)
        self.snapshots: Snapshots | None = None
        if storage is not None:
            self.snapshots = Snapshots(
                storage, self.name, f".{spec.life.incarnation}", self.points, in_background=not spec.machine.is_shared
            )
        if state is not None:
            self.block.restore(state)
            self.evaluations = [Evaluation(**evaluation) for evaluation in state["actor"]["evaluations"]]
            self.points.reach("restored")
        if spec.slowness != Slowness():
            self.times.stretch = Stretch(spec.slowness)

    @property
    def version(self) -> int:
        """Uses the block has finished."""
        return self.block.version

    @property
    def num_snapshots(self) -> int:
        """Snapshots that have been written so far, or have failed."""
        return 0 if self.snapshots is None else self.snapshots.num_done

    def program(self) -> Program:
        """Return the block's program."""
        edges = self.spec.edges
        if self.spec.replay is not None:
            return self._replay_program(self.spec.replay)
        program = self._program = BlockProgram(
            self.block, edges, self.times,
            snapshot=self._take_snapshot,
            report=self._note_evaluation,
            trained=self.on_trained,
            is_paced=lambda: self.bound is not None,
        )  # fmt: skip
        if self.restored is not None:
            program.restore(self.restored["program"], goes_on=self.spec.goes_on)
        return program.run()

    def _replay_program(self, replay: Replay) -> Program:
        edges, inbox = self.spec.edges, self.inboxes[self.spec.edges.driver]
        draw = random.Random(seed_of(self.spec.seed, "replay", self.name)).randrange
        self.replay = ReplayProgram(
            self.block, edges, self.times, ReplayBuffer(replay.settings, draw),
            bound=lambda: None if self.spec.index == 0 else self.bound,
            num_batches=replay.num_batches, max_open=replay.max_open,
            producer_version=lambda: inbox.producer_version,
            promise=lambda version: self.promise(edges.driver, version),
            snapshot=self._take_snapshot,
            report=self._note_evaluation,
            trained=lambda message: self.count_staleness(message, edges.driver),
            is_paused=lambda: self.is_paused,
        )  # fmt: skip
        self._program = self.replay
        if self.restored is not None:
            self.replay.restore(self.restored["program"], goes_on=self.spec.goes_on)
        return self.replay.run()

    def count_staleness(self, message: Message, edge: str) -> None:
        """Count how old a message is; one that drives begins a use, at which a block dies if a test says so."""
        if edge == self.spec.edges.driver:
            if self._step_mark is not None:
                self._step_mark.set(message.batch_id)
            self.points.reach("step", message.batch_id)
            self.uses.begin(message.batch_id)
        super().count_staleness(message, edge)

    def _note_evaluation(self, evaluation: Evaluation) -> None:
        self.evaluations.append(replace(evaluation, at_s=self.times.elapsed()))

    def set(self, values: Mapping[str, Any]) -> None:
        """Change settings; those of the replay buffer (`replay`) apply before the next use."""
        super().set(values)
        if self.replay is not None and values.get("replay") is not None:
            self.replay.new_settings = values["replay"]

    def account(self, edge: str) -> dict[str, Any]:
        """Return what the program has done with what it was given on an edge; it keeps its own books."""
        known, program = super().account(edge), self._program
        return known if program is None else program.account(edge, known["trained"])

    def finish(self) -> dict[str, Any]:
        """Return the final facts, with the digests of every tensor."""
        if self.snapshots is not None:
            self.snapshots.wait(self.machine.deadline_s)
        facts = super().finish()
        facts["digests"] = self.block.digests()
        facts["auxiliary_digests"] = self.block.auxiliary_digests()
        return facts

    def report(self) -> dict[str, Any]:
        """Return small facts about this block."""
        loss = self.block.loss
        return super().report() | {
            "index": self.spec.index,
            "updates": self.block.updates,
            "may_compile": self.block.may_compile,
            "num_skipped": self.block.finiteness.num_skipped,
            "uses": self.uses.as_dict(),
            "loss": None if loss is None else float(loss),
            "layers": list(self.spec.layers),
            "last_batch": self._program.last_batch if isinstance(self._program, BlockProgram) else None,
            "evaluations": [vars(evaluation) for evaluation in self.evaluations],
            **(self.snapshots.report() if self.snapshots is not None else {"shards": {}, "snapshot_errors": {}}),
        }

    def _take_snapshot(self, position: int, orders: Flags) -> None:
        if self.snapshots is None:
            return
        assert self._program is not None
        actor = self.state(position) | {
            "program": self._program.state(),
            "evaluations": [vars(evaluation) for evaluation in self.evaluations],
        }
        self.snapshots.take(position, self.block.snapshot() | {"actor": actor}, is_last=bool(orders & Flags.LAST))


def _kept(spec: BlockSpec) -> dict[str, int]:
    """Feedback for batch t - D is handled just before t: D messages of the edge are under way at any position."""
    return {**spec.edges.room, **({spec.edges.done: 1} if spec.edges.done is not None else {})}
