"""Goes on with a run whose network is cut into other blocks: a checkpoint is put together anew, layer by layer.

That is exact where the cut decides who computes and not what: every loss at the last block, no feedback under way at
a position, nothing that belongs to a block as a whole. Edges begin anew, since there are others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from actors.block import Block
from actors.errors import UserError
from actors.learning_rule import LearningRule
from actors.plugins import plugin_class
from actors.shard import stage, write_shard
from orchestrator.checkpoints import MANIFEST, Checkpoint, Checkpoints
from orchestrator.config import RunConfig
from orchestrator.plan import Plan
from orchestrator.specs import block_spec, is_unordered

_IN_BODY = re.compile(r"body\.layers\.(\d+)\.(.+)")
NO_EDGES: Mapping[str, Any] = {"inboxes": {}, "outboxes": {}, "staleness": {}}
State = Mapping[str, Any]


def recut_refusal(config: RunConfig) -> str:
    """Return why a run can't go on with the network cut otherwise, as the end of a sentence; empty if it can.

    Raises:
        UserError: the rule can't be imported.
    """
    rule = cast(type[LearningRule], plugin_class("rule", name=config.rule.name, factory=config.rule.factory))
    name = config.rule.name or config.rule.factory
    if reason := rule.cut_matters(rule.Config(**config.rule.options)):
        return f"rule {name!r} {reason}"
    if config.schedule.name != "pipeline" or is_unordered(config) or config.schedule.delay_per_hop > 0:
        return "schedule: only under pipeline with delay_per_hop 0 nothing is under way between blocks at a checkpoint"
    if config.optimizer.clip is not None or config.optimizer.blocks:
        return "optimizer: gradients are clipped by block, or a block has settings of its own"
    if config.training.precision == "fp16":
        return "training.precision: under fp16 every block scales its own loss"
    return ""


def recut(config: RunConfig, plan: Plan, checkpoints: Checkpoints, found: Checkpoint, epoch: int) -> None:
    """Commit a checkpoint again, at the same position, with a shard for every block of the plan.

    Args:
        checkpoints: of the run; those after `found` that verify are deleted, since the run goes on from `found`.
            Damaged ones stay: who goes on names them.
        epoch: of the lease; its number is part of the new files' names.

    Raises:
        UserError: the checkpoint does not say how it is cut, or something in it belongs to a block as a whole.
    """
    where = f"checkpoint at batch {found.position}"
    if not found.cut:
        raise UserError(f"{where}: does not say how it is cut; resume with the blocks that the run had")
    old = [found.read(index) for index in range(len(found.shards))]
    if any(state["open"] or state["actor"]["program"]["ahead"] for state in old):
        raise UserError(f"{where}: feedback is under way between its blocks; resume with the blocks that the run had")
    whole = _Whole(old, found.cut)
    shards = []
    for index, shape in enumerate(plan.shapes):
        spec = block_spec(config, plan, index, "recut")
        machine = replace(spec.machine, device="cpu", compile=False)
        block = Block(replace(spec, machine=machine, network=replace(spec.network, weights=None)), shape)
        whole.fill(block, plan.blocks[index])
        name = f"{found.folder}/{spec.name}.cut-{epoch}.safetensors"
        actor = {**NO_EDGES, "program": whole.program, "evaluations": whole.evaluations(block)}
        shards.append(write_shard(checkpoints.storage, name, stage(block.snapshot() | {"actor": actor})))
    for later in checkpoints.all()[0]:
        if later.position > found.position and not later.damage():
            checkpoints.storage.delete(later.folder, MANIFEST)
    checkpoints.commit(found.position, shards, {**found.source, "actor": dict(NO_EDGES)})


class _Whole:
    """The state of the whole network, from which blocks take their layers.

    Args:
        old: the states of the blocks, first to last.
        cut: the names of their layers.
    """

    def __init__(self, old: Sequence[State], cut: Sequence[Sequence[str]]) -> None:
        self.first, self.last = old[0], old[-1]
        self.body: dict[str, Tensor] = {}
        self.auxiliary: dict[str, Tensor] = {}
        self.gradients: dict[tuple[str, str], Tensor] = {}
        self.steps: list[Any] = []
        """The optimizer's state of every parameter of the bodies, in the network's order."""
        self.group: dict[str, Any] | None = None
        for state, layers in zip(old, cut, strict=True):
            self.body |= state["body"]
            self.auxiliary |= {n: t for n, t in state["auxiliary"].items() if n.startswith("feedback.")}
            self.gradients |= dict(_by_layer(state["gradients"], layers))
            self._add_steps(state["optimizers"].get("body"))
            if any(name.startswith("rule.") for name in state["auxiliary"]):
                raise UserError("rule: its own parameters belong to blocks; resume with the blocks that the run had")
        self._taken = 0

    def _add_steps(self, optimizer: State | None) -> None:
        if optimizer is not None:
            (group,) = optimizer["param_groups"]
            self.group = self.group or dict(group)
            self.steps += [optimizer["state"].get(number) for number in group["params"]]

    @property
    def program(self) -> State:
        """Where every block's program is."""
        return self.first["actor"]["program"]

    def evaluations(self, block: Block) -> list[Any]:
        """Return what a block has reported: only the last one has a loss."""
        return self.last["actor"]["evaluations"] if block.place.is_last else []

    def fill(self, block: Block, layers: Sequence[str]) -> None:
        """Give the next block, first to last, the state of its layers."""
        state = self.last if block.place.is_last else self.first
        own = dict(state)
        own["body"], own["open"] = self.body, []
        heads = {n: t for n, t in self.last["auxiliary"].items() if n.startswith("objective.")}
        own["auxiliary"] = self.auxiliary | (heads if block.place.is_last else {})
        own["gradients"] = {f"body.layers.{layers.index(layer)}.{rest}": gradient
                            for (layer, rest), gradient in self.gradients.items() if layer in layers}  # fmt: skip
        own["optimizers"] = {}
        if "body" in block.optimizers:
            own["optimizers"]["body"] = self._steps_of(len(block.optimizers["body"].parameters))
        if block.place.is_last:
            own["gradients"] |= {n: g for n, g in self.last["gradients"].items() if n.startswith("objective.")}
            own["optimizers"] |= {g: o for g, o in self.last["optimizers"].items() if g != "body"}
        else:
            own["head_updates"], own["accumulated"] = 0, {**state["accumulated"], "heads": 0}
            own["num_skipped"] = 0
        block.restore(own)

    def _steps_of(self, count: int) -> State:
        assert self.group is not None
        steps = self.steps[self._taken : self._taken + count]
        self._taken += count
        known = {number: step for number, step in enumerate(steps) if step is not None}
        return {"state": known, "param_groups": [{**self.group, "params": list(range(count))}]}


def _by_layer(gradients: Mapping[str, Tensor], layers: Sequence[str]) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Yield the gradients of a body by the names of their layers, and within them."""
    for name, gradient in gradients.items():
        if found := _IN_BODY.fullmatch(name):
            yield (layers[int(found[1])], found[2]), gradient
