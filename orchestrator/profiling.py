"""Measures what a run's blocks cost: the real data actor and block actors in this process, for a few seconds.

The actors take turns in one thread, so every piece of work is timed alone; all of them are built, so the machine must
hold the network once. Nothing is written, and nothing of the run is started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import nn

from actors.block_actor import BlockActor
from actors.chain_actor import ChainActor
from actors.data_actor import DataActor
from actors.errors import RunError
from actors.transport.in_process import InProcessPort
from orchestrator.carriage import carriages
from orchestrator.chain_profile import NOTHING, BlockProfile, Carriage, ChainProfile
from orchestrator.config import RunConfig
from orchestrator.measured_times import MeasuredTimes
from orchestrator.plan import Plan, make_plan
from orchestrator.specs import block_spec, source_spec
from orchestrator.wiring import SOURCE, block_name

FEWEST = 5
"""Batches that are timed at least."""
WARM_UP = 2
"""Batches before those, beside the ones that late feedback takes to come round."""


def measure(config: RunConfig, seconds: float, show: Callable[[str], None] = lambda text: None) -> ChainProfile:
    """Return what the blocks of a run cost.

    Args:
        config: of the run, its cuts resolved.
        seconds: to spend on timed batches, after those that warm up.
        show: told now and then how far it is.

    Raises:
        UserError: as `make_plan`.
    """
    plan = make_plan(config)
    num_threads, deterministic = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    try:
        is_shared = config.placement.backend == "in_process"
        return _Profiling(_endless(config, plan), plan, show, is_shared=is_shared).run(seconds)
    finally:
        torch.set_num_threads(num_threads)
        torch.set_deterministic_debug_mode(deterministic)


def _endless(config: RunConfig, plan: Plan) -> RunConfig:
    """The run without its faults and evaluations, and with more epochs than can be measured."""
    return config.model_copy(
        update={
            "faults": config.faults.model_copy(update={"kill": []}),
            "evaluation": config.evaluation.model_copy(update={"every_epochs": 0, "every_batches": None, "splits": []}),
            "checkpoint": config.checkpoint.model_copy(update={"every_s": 0.0, "every_batches": None}),
            "training": config.training.model_copy(
                update={"epochs": config.training.epochs + 10_000 // plan.batches_per_epoch}
            ),
            "placement": config.placement.model_copy(update={"backend": "in_process"}),
            "recovery": config.recovery.model_copy(update={"mode": "none"}),
        }
    )


class _Profiling:
    """One measurement: its actors, joined in this process, and their stopwatches."""

    def __init__(self, config: RunConfig, plan: Plan, show: Callable[[str], None], *, is_shared: bool) -> None:
        self.config, self.plan, self.show = config, make_plan(config), show
        self.is_shared = is_shared
        late = [late.delay for edges in plan.wiring.blocks for late in edges.late]
        self.warm = max([WARM_UP, *late]) + 1
        """Step of the inspected batch; those after it are timed."""
        self.actors: dict[str, ChainActor] = {SOURCE: DataActor(source_spec(config, self.plan, "plan"))}
        for index, shape in enumerate(plan.shapes):
            self.actors[block_name(index)] = BlockActor(block_spec(config, self.plan, index, "plan"), shape)
        for edge in plan.wiring.edges:
            port = InProcessPort(self.actors[edge.producer].outboxes[edge.name])
            self.actors[edge.consumer].connect({edge.name: port})
        self.times = {name: self._watch(actor) for name, actor in self.actors.items()}

    def _watch(self, actor: ChainActor) -> MeasuredTimes:
        is_cuda = actor.machine.device.startswith("cuda")
        inspected = self.warm if isinstance(actor, BlockActor) and not actor.machine.compile else None
        times = MeasuredTimes(
            inspected, actor.machine.threads, torch.cuda.synchronize if is_cuda else lambda: None, actor.times.stretch
        )
        if isinstance(actor, BlockActor):
            times.inspection.own = {t.untyped_storage().data_ptr() for t in _tensors(actor)}
        actor.times = times
        return times

    def run(self, seconds: float) -> ChainProfile:
        """Let the actors train by turns until enough batches were timed."""
        torch.set_num_threads(self.config.placement.threads)
        last, told = block_name(len(self.plan.blocks) - 1), time.monotonic()
        begun: float | None = None
        until, is_over = self.warm, False
        for actor in self.actors.values():
            actor.start()
            actor.times.start()
        order = list(self.actors.values())
        while any(not actor.task.is_done for actor in order if actor.task is not None):
            moved = [self._advance(actor) for actor in order]
            order.reverse()  # activations pass the whole chain in one round, feedback in the next
            if not any(moved):
                raise RunError("nothing can advance while the blocks are profiled")
            through, now = self.actors[last].version, time.monotonic()
            if begun is None and through > self.warm:
                begun = now
            enough = begun is not None and through > self.warm + FEWEST and now - begun >= seconds
            if enough and not is_over:
                until, is_over = through - 1, True
                self.actors[SOURCE].order("stop", {})
            if now - told > 1.0:
                told = now
                self.show(f"profiling: {through} batches through {len(self.plan.blocks)} blocks")
        return self._result(until if is_over else self.actors[last].version - 2)

    def _advance(self, actor: ChainActor) -> bool:
        task, moved = actor.task, False
        assert task is not None
        while task.advance(0.0):
            moved = True
        return moved

    def _result(self, last: int) -> ChainProfile:
        first = self.warm + 1
        load, _ = self.times[SOURCE].typical(first, last, 1)
        blocks = []
        for index, layers in enumerate(self.plan.blocks):
            name = block_name(index)
            actor = cast(BlockActor, self.actors[name])
            works, calls = self.times[name].typical(first, last, self.config.training.accumulate)
            inspection = self.times[name].inspection
            body, heads = actor.block.body, [actor.block.rule, actor.block.objective]
            blocks.append(
                BlockProfile(
                    name, layers, _count(body), sum(_count(part) for part in heads if part is not None), works, calls,
                    flops=inspection.flops if self.times[name].inspected is not None else None,
                    parameter_bytes=sum(t.numel() * t.element_size() for t in _tensors(actor)),
                    optimizer_bytes=_optimizer_bytes(actor),
                    activation_bytes=inspection.kept_bytes,
                    open_batches=max([1, *(late.delay for late in self.plan.wiring.blocks[index].late)]),
                )
            )  # fmt: skip
        return ChainProfile(
            load.get("", NOTHING), tuple(blocks), self._edges(),
            batch_size=self.config.data.batch_size, num_batches=last - first + 1,
        )  # fmt: skip

    def _edges(self) -> Mapping[str, Carriage]:
        """What a message of each edge costs; the end of activations is a message without tensors."""
        sizes = {}
        for edge in self.plan.wiring.edges:
            outbox = self.actors[edge.producer].outboxes[edge.name]
            has_end = ":" not in edge.name or edge.name.endswith(":raw")
            sizes[edge.name] = round(outbox.num_bytes / max(1, outbox.num_sent - has_end))
        return carriages(sizes, same_node=self.config.placement.same_node, is_shared=self.is_shared)


def _tensors(actor: BlockActor) -> list[torch.Tensor]:
    parts: list[nn.Module | None] = [actor.block.body, actor.block.rule, actor.block.objective]
    return [t for part in parts if part is not None for t in (*part.parameters(), *part.buffers())]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _optimizer_bytes(actor: BlockActor) -> int:
    optimizers = [group.optimizer for group in actor.block.optimizers.values()]
    return sum(
        value.numel() * value.element_size()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
