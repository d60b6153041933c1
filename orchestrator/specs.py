"""Turns a validated config into what actors are told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.datasets.dataset import DataSpec
from actors.edge_ends import Life
from actors.edges import EdgeSettings
from actors.fail_points import Kill
from actors.networks.network import NetworkSpec
from actors.optimizers import OptimizerSpec, RateSchedule
from actors.seeds import seed_of
from actors.spec import BlockSpec, Machine, PluginSpec, Replay, SourceSpec
from actors.stretch import Slowness
from actors.trace import sampled_batches
from orchestrator.codecs import edge_codecs
from orchestrator.config import RunConfig
from orchestrator.config.durability import durability
from orchestrator.config.legality import FIFO, outbox_capacity, replay_settings
from orchestrator.config.placing import place_of
from orchestrator.retention import most_uncovered
from orchestrator.wiring import SOURCE, Wiring, block_name

if TYPE_CHECKING:
    from orchestrator.checkpoints import Checkpoint
    from orchestrator.plan import Plan


def data_spec(config: RunConfig) -> DataSpec:
    """Return what the data actor loads."""
    data = config.data
    return DataSpec(
        name=data.name, factory=data.factory, root=data.root, limit=data.limit,
        validation=data.validation, batch_size=data.batch_size, workers=data.workers,
        augment=data.augment, seed=config.seed, options=data.options,
    )  # fmt: skip


def network_spec(config: RunConfig) -> NetworkSpec:
    """Return the network to build."""
    network = config.network
    return NetworkSpec(name=network.name, factory=network.factory, weights=network.weights, options=network.options)


@dataclass(frozen=True)
class Birth:
    """Which life of an actor begins, and from where.

    Args:
        life: fences the lives before.
        num_restarts: lives before, in this job.
        checkpoint: what it goes on from; None: the run's beginning.
        goes_on: training had ended there, and goes on with further epochs.
        last_batch: what an earlier life of the source has sent as the last batch.
        first_new: the first batch that surely no earlier life of the source has sent to a block that lives.
    """

    life: Life = field(default_factory=Life)
    num_restarts: int = 0
    checkpoint: Checkpoint | None = None
    goes_on: bool = False
    last_batch: int | None = None
    first_new: int = 0


def source_spec(config: RunConfig, plan: Plan, run: str, birth: Birth = Birth()) -> SourceSpec:
    """Return the data actor's spec."""
    evaluation = config.evaluation
    every = evaluation.every_batches
    if every is None and evaluation.every_epochs != 0:
        every = (evaluation.every_epochs or 1) * plan.batches_per_epoch
    return SourceSpec(
        run=run,
        data=data_spec(config),
        epochs=plan.num_epochs,
        edges=plan.wiring.source,
        evaluate_every=every,
        evaluation_batch_size=evaluation.batch_size or config.data.batch_size,
        until_stopped=is_unordered(config),
        repeats=config.schedule.name == "replay",
        evaluated_splits=tuple(evaluation.splits),
        settings=edge_settings(config, plan.wiring),
        machine=_machine(config, device="cpu", threads=1),
        snapshot_every=durability(config).every_batches,
        most_uncovered=most_uncovered(config, plan) if is_retaining(config) else None,
        restore=birth.checkpoint and birth.checkpoint.source,
        goes_on=birth.goes_on,
        last_batch=birth.last_batch,
        first_new=birth.first_new,
        life=birth.life,
        num_restarts=birth.num_restarts,
        kills=kills_of(config, SOURCE),
        traced=sampled_batches(plan.num_batches, plan.phase_batches),
    )


def block_spec(
    config: RunConfig, plan: Plan, index: int, run: str,
    checkpoints: str | None = None, birth: Birth = Birth(), step_mark: str | None = None, gpu: int = 0,
) -> BlockSpec:  # fmt: skip
    """Return the spec of one block's actor.

    Args:
        checkpoints: address of the storage for its snapshots.
        gpu: which of its process's GPUs it computes on, if it asks for any.
    """
    placement = config.placement
    device = f"cuda:{gpu}" if place_of(placement, index).gpus else "cpu"
    return BlockSpec(
        run=run,
        name=block_name(index),
        index=index,
        num_blocks=len(plan.blocks),
        seed=config.seed,
        layers=plan.blocks[index],
        network=network_spec(config),
        raw=plan.raw,
        num_classes=plan.num_classes,
        rule=PluginSpec(config.rule.name, config.rule.factory, config.rule.options),
        objective=PluginSpec(config.objective.name, config.objective.factory, config.objective.options),
        optimizers=optimizer_specs(config, plan, index),
        edges=plan.wiring.blocks[index],
        settings=edge_settings(config, plan.wiring),
        machine=_machine(config, device=device, threads=placement.threads, pins=placement.pin_cpus),
        fields=plan.needs[index].fields,
        late=config.schedule.late or "stash",
        phase_batches=plan.phase_batches,
        replay=_replay(config, plan),
        bound=config.staleness.max,
        slowness=_slowness(config, index),
        accumulate=config.training.accumulate,
        checkpoints=checkpoints,
        step_mark=step_mark,
        restore=birth.checkpoint and birth.checkpoint.shards[index],
        goes_on=birth.goes_on,
        life=birth.life,
        num_restarts=birth.num_restarts,
        on_nonfinite=config.on_nonfinite,
        kills=kills_of(config, block_name(index)),
        traced=sampled_batches(plan.num_batches, plan.phase_batches),
    )


def is_unordered(config: RunConfig) -> bool:
    """Return whether blocks take what comes, instead of everything in its fixed place."""
    return config.schedule.name == "replay" or config.schedule.feedback == "as_it_arrives"


def is_retaining(config: RunConfig) -> bool:
    """Return whether messages stay with their producer until a checkpoint covers them."""
    return durability(config).mode == "local" and not is_unordered(config)


def kills_of(config: RunConfig, actor: str) -> tuple[Kill, ...]:
    """Return where an actor is to die."""
    return tuple(Kill(k.actor, k.at, k.batch, k.lives) for k in config.faults.kill if k.actor == actor)


def _replay(config: RunConfig, plan: Plan) -> Replay | None:
    """Under `replay` passes that feedback never answers are given up; under `pipeline` every one is answered."""
    if not is_unordered(config):
        return None
    is_replay = config.schedule.name == "replay"
    settings = replay_settings(config.buffers) if is_replay else FIFO
    max_open = len(plan.blocks) * (outbox_capacity(config) + 4) if is_replay else plan.num_batches
    return Replay(settings, plan.num_batches, max_open)


def _slowness(config: RunConfig, index: int) -> Slowness:
    faults = config.faults
    factor = math.prod(slow.factor for slow in faults.slow if slow.block == index)
    return Slowness(factor, faults.pad, faults.jitter, seed_of(config.seed, "jitter", index))


def optimizer_specs(config: RunConfig, plan: Plan, index: int) -> dict[str, OptimizerSpec]:
    """Return the optimizer of every group of one block: base, then per-block, then per-group settings."""
    optimizer = config.optimizer
    base = {"name": optimizer.name, "lr": optimizer.lr, "clip": optimizer.clip, **optimizer.options}
    base = _overridden(base, optimizer.blocks.get(index, {}))
    schedule = _rate_schedule(config, plan)
    groups: dict[str, Mapping[str, Any]] = {
        "body": {}, "heads": optimizer.heads, "synthesizer": optimizer.synthesizer,
    }  # fmt: skip
    return {group: _optimizer_spec(_overridden(base, own), schedule) for group, own in groups.items()}


def _overridden(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Put a group's own settings over `base`; another optimizer takes over the rate and clipping only."""
    if own.get("name", base["name"]) != base["name"]:
        base = {key: base[key] for key in ("lr", "clip")}
    return {**base, **own}


def _optimizer_spec(settings: Mapping[str, Any], schedule: RateSchedule) -> OptimizerSpec:
    arguments = {key: value for key, value in settings.items() if key not in ("name", "clip")}
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    return OptimizerSpec(settings["name"], arguments, settings["clip"], schedule)


def _rate_schedule(config: RunConfig, plan: Plan) -> RateSchedule:
    schedule = config.optimizer.schedule
    per_epoch = plan.batches_per_epoch / config.training.accumulate
    total = -(-plan.batches_per_epoch * config.training.epochs // config.training.accumulate)
    return RateSchedule(
        name=schedule.name,
        warmup=round(schedule.warmup_epochs * per_epoch),
        milestones=tuple(round(epoch * per_epoch) for epoch in schedule.milestones),
        gamma=schedule.gamma,
        total=total,
    )


def edge_settings(config: RunConfig, wiring: Wiring) -> EdgeSettings:
    """Return the sizes of every edge, and the codecs of those that have one."""
    buffers, capacity = config.buffers, outbox_capacity(config)
    limit = max(4, capacity) if buffers.mode == "auto" else capacity  # it may soon be larger
    codecs = edge_codecs(config.wire, wiring)
    return EdgeSettings(capacity, buffers.window or 1, limit=limit, retains=is_retaining(config), codecs=codecs)


def _machine(config: RunConfig, *, device: str, threads: int, pins: bool = False) -> Machine:
    training = config.training
    return Machine(
        device=device,
        threads=threads,
        channels_last=training.channels_last,
        deterministic=training.deterministic,
        compile=training.compile,
        precision=training.precision,
        deadline_s=config.placement.deadline_s,
        is_shared=config.placement.backend == "in_process",
        pins=pins and config.placement.backend != "in_process",
        serves_sockets=config.placement.same_node == "socket",
        is_direct=config.placement.device_transport == "rdt",
    )
