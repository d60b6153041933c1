"""What an actor is told when it is set up: plain values that cross process boundaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.datasets.dataset import DataSpec
from actors.edge_ends import Life
from actors.edges import BlockEdges, EdgeSettings, SourceEdges
from actors.fail_points import Kill
from actors.networks.network import NetworkSpec
from actors.optimizers import OptimizerSpec
from actors.replay_buffer import ReplaySettings
from actors.shard import ShardFile
from actors.stretch import Slowness


@dataclass(frozen=True)
class PluginSpec:
    """A rule or objective: by name or by factory, with its settings."""

    name: str | None
    factory: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """How an actor uses the processor it runs on."""

    device: str = "cpu"
    threads: int = 1
    channels_last: bool = False
    deterministic: bool = True
    compile: bool = False
    precision: str = "fp32"
    deadline_s: float = 600.0
    is_shared: bool = False
    """Whether all actors of the run live in one process."""
    pins: bool = False
    """Whether the process keeps to cores of its own."""
    serves_sockets: bool = False
    """Whether consumers on the same node take from it over a socket."""
    is_direct: bool = False
    """Whether large tensors travel straight from memory to memory."""


@dataclass(frozen=True)
class RawInput:
    """The network's input: shape of one sample; mean and std of its channels before it was normalised."""

    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Replay:
    """A block that trains on whatever is there.

    Args:
        settings: of its replay buffer.
        num_batches: batches that must have had their last credit before the block has trained enough.
        max_open: passes that may wait for feedback at a time.
    """

    settings: ReplaySettings
    num_batches: int
    max_open: int


@dataclass(frozen=True)
class BlockSpec:
    """Everything a block actor needs to build its block.

    `fields`: what rule and objective need of a batch besides the block's input.
    `late`: `stash` or `recompute`, what late credit is pulled back through.
    `phase_batches`: under `sequential`, how many batches each block trains on, one block after another.
    `replay`: how it chooses what to train on, None if it follows the order of its input.
    `bound`: S, the staleness bound of the edges between blocks; None: no bound.
    `slowness`: simulated.
    `checkpoints`: address of the storage where snapshots are written; None: none is.
    `step_mark`: file that says what it trains on, for others to read after its death.
    `restore`: the snapshot to go on from. `goes_on`: training had ended there, and goes on with further batches.
    `life`, `num_restarts`: which life of the actor this is, and how many there were in this job.
    `on_nonfinite`: `stop` or `skip`.
    `kills`: where it is to die, for tests.
    `traced`: the batches whose spans are kept for the timeline, the same in every actor.
    """

    run: str
    name: str
    index: int
    num_blocks: int
    seed: int
    layers: tuple[str, ...]
    network: NetworkSpec
    raw: RawInput
    num_classes: int
    rule: PluginSpec
    objective: PluginSpec
    optimizers: Mapping[str, OptimizerSpec]
    edges: BlockEdges
    settings: EdgeSettings = field(default_factory=EdgeSettings)
    machine: Machine = field(default_factory=Machine)
    fields: frozenset[str] = frozenset()
    late: str = "stash"
    phase_batches: int | None = None
    replay: Replay | None = None
    bound: int | None = None
    slowness: Slowness = field(default_factory=Slowness)
    accumulate: int = 1
    checkpoints: str | None = None
    step_mark: str | None = None
    restore: ShardFile | None = None
    goes_on: bool = False
    life: Life = field(default_factory=Life)
    num_restarts: int = 0
    on_nonfinite: str = "stop"
    kills: tuple[Kill, ...] = ()
    traced: tuple[range, ...] = ()


@dataclass(frozen=True)
class SourceSpec:
    """Everything a data actor needs to feed the chain.

    `evaluate_every`: training batches between evaluations; None: only at the end.
    `until_stopped`: the blocks say when they have enough (`replay`), or have trained (feedback as it arrives).
    `repeats`: with that, whether further epochs follow until then.
    `snapshot_every`: training batches between snapshots; None: only when asked, and at the end.
    `most_uncovered`: batches that may leave before a checkpoint covers them; None: no limit.
    `restore`: the source's part of the checkpoint to go on from. `goes_on`: as in BlockSpec.
    `last_batch`: what an earlier life has sent as the last one, because the run was stopped.
    `first_new`: the first batch that surely no earlier life has sent to a block that lives.
    `life`, `num_restarts`, `kills`: as in BlockSpec.
    `traced`: the batches whose spans are kept for the timeline, the same in every actor.
    """

    run: str
    data: DataSpec
    epochs: int
    edges: SourceEdges
    evaluate_every: int | None = None
    until_stopped: bool = False
    repeats: bool = False
    evaluation_batch_size: int = 256
    evaluated_splits: tuple[str, ...] = ("test", "validation")
    settings: EdgeSettings = field(default_factory=EdgeSettings)
    machine: Machine = field(default_factory=Machine)
    name: str = "source"
    snapshot_every: int | None = None
    most_uncovered: int | None = None
    restore: Mapping[str, Any] | None = None
    goes_on: bool = False
    last_batch: int | None = None
    first_new: int = 0
    life: Life = field(default_factory=Life)
    num_restarts: int = 0
    kills: tuple[Kill, ...] = ()
    traced: tuple[range, ...] = ()
