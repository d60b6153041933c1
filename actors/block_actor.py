"""BlockActor: a block, its edges and its snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.block import Block
from actors.chain_actor import ChainActor
from actors.evaluation import Evaluation
from actors.program import BlockProgram, Program
from actors.shard import ShardFile, write_shard
from actors.spec import BlockSpec


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
        super().__init__(spec.run, spec.name, outgoing_edges(spec), spec.settings, spec.machine, spec.incarnation)
        self.spec = spec
        self.block = Block(spec, shape)
        self.evaluations: list[Evaluation] = []
        self.shards: dict[int, ShardFile] = {}

    @property
    def version(self) -> int:
        """Uses the block has finished."""
        return self.block.version

    def program(self) -> Program:
        """Return the block's program."""
        edges = self.spec.edges
        return BlockProgram(
            self.block, edges, self.times,
            snapshot=self._write_snapshot,
            report=self.evaluations.append,
            trained=lambda message: self.on_trained(message, edges.driver),
        ).run()  # fmt: skip

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
