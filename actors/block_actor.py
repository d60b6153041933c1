"""BlockActor: a block, its edges and its snapshots."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.block import Block
from actors.chain_actor import ChainActor
from actors.evaluation import Evaluation
from actors.program import BlockProgram, Program
from actors.replay_buffer import ReplayBuffer
from actors.replay_program import ReplayProgram
from actors.seeds import seed_of
from actors.shard import ShardFile, write_shard
from actors.spec import BlockSpec, Replay
from actors.stretch import Slowness, Stretch


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
        super().__init__(
            spec.run, spec.name, outgoing_edges(spec),
            spec.settings, spec.machine, spec.incarnation, spec.edges.room, spec.traced,
        )  # fmt: skip
        self.spec = spec
        self.block = Block(spec, shape)
        self.evaluations: list[Evaluation] = []
        self.shards: dict[int, ShardFile] = {}
        self.replay: ReplayProgram | None = None
        self._in_order: BlockProgram | None = None
        self.bound = spec.bound
        if spec.slowness != Slowness():
            self.times.stretch = Stretch(spec.slowness)

    @property
    def version(self) -> int:
        """Uses the block has finished."""
        return self.block.version

    def program(self) -> Program:
        """Return the block's program."""
        edges = self.spec.edges
        if self.spec.replay is not None:
            return self._replay_program(self.spec.replay)
        self._in_order = BlockProgram(
            self.block, edges, self.times,
            snapshot=self._write_snapshot,
            report=self.evaluations.append,
            trained=lambda message: self.on_trained(message, edges.driver),
            is_paced=lambda: self.bound is not None,
        )  # fmt: skip
        return self._in_order.run()

    def _replay_program(self, replay: Replay) -> Program:
        edges, inbox = self.spec.edges, self.inboxes[self.spec.edges.driver]
        draw = random.Random(seed_of(self.spec.seed, "replay", self.name)).randrange
        self.replay = ReplayProgram(
            self.block, edges, self.times, ReplayBuffer(replay.settings, draw),
            bound=lambda: None if self.spec.index == 0 else self.bound,
            num_batches=replay.num_batches, max_open=replay.max_open,
            producer_version=lambda: inbox.producer_version,
            promise=lambda version: self.promise(edges.driver, version),
            snapshot=self._write_snapshot,
            report=self.evaluations.append,
            trained=lambda message: self.count_staleness(message, edges.driver),
        )  # fmt: skip
        return self.replay.run()

    def set(self, values: Mapping[str, Any]) -> None:
        """Change settings; those of the replay buffer (`replay`) apply before the next use."""
        super().set(values)
        if self.replay is not None and values.get("replay") is not None:
            self.replay.new_settings = values["replay"]

    def account(self, edge: str) -> dict[str, Any]:
        """Return what the program has done with what it was given on an edge; it keeps its own books."""
        known, program = super().account(edge), self.replay or self._in_order
        return known if program is None else program.account(edge, known["trained"])

    def finish(self) -> dict[str, Any]:
        """Return the final facts, with the digests of every tensor."""
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
            "loss": None if loss is None else float(loss),
            "layers": list(self.spec.layers),
            "evaluations": [vars(evaluation) for evaluation in self.evaluations],
            "shards": {position: vars(shard) for position, shard in self.shards.items()},
        }

    def _write_snapshot(self, position: int) -> None:
        if self.spec.checkpoints is None:
            return
        folder = Path(self.spec.checkpoints) / checkpoint_folder(position)
        self.shards[position] = write_shard(folder, f"{self.name}.safetensors", self.block.snapshot())


def checkpoint_folder(position: int) -> str:
    """Return the name of the folder that holds the snapshots of a position."""
    return f"batch-{position:09d}"
