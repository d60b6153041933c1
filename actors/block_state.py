"""A block's state at a position, as nested plain values and tensors; open passes included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors.learning_rule import Batch

if TYPE_CHECKING:
    from actors.block import Block
    from actors.module_pass import ModulePass


def take_state(block: Block) -> dict[str, Any]:
    """Return everything a new block with the same spec needs to go on alike."""
    return {
        "version": block.version,
        "updates": block.updates,
        "head_updates": block.head_updates,
        "synthesizer_updates": block.synthesizer_updates,
        "accumulated": dict(block.accumulated),
        "precision": block.precision.state(),
        "num_skipped": block.finiteness.num_skipped,
        "body": dict(block.body.named_state()),
        "auxiliary": block.auxiliary_state(),
        "gradients": {name: p.grad for name, p in block.named_parameters() if p.grad is not None},
        "optimizers": {group: o.optimizer.state_dict() for group, o in block.optimizers.items()},
        "open": [_pass_state(p) for p in block.open.values()],
    }


def read_state(block: Block, state: Mapping[str, Any]) -> None:
    """Make `block` what it was when `take_state` was called."""
    block.version, block.updates = state["version"], state["updates"]
    block.head_updates, block.synthesizer_updates = state["head_updates"], state["synthesizer_updates"]
    block.accumulated = dict(state["accumulated"])
    block.precision.restore(state["precision"])
    block.finiteness.num_skipped = state["num_skipped"]
    block.body.load_named_state(state["body"])
    auxiliary = state["auxiliary"]
    block.body.load_auxiliary_state(_below("feedback", auxiliary))
    block.rule.load_state_dict(_below("rule", auxiliary))
    if block.objective is not None:
        block.objective.load_state_dict(_below("objective", auxiliary))
    for group, optimizer in block.optimizers.items():
        optimizer.optimizer.load_state_dict(state["optimizers"][group])
    for name, parameter in block.named_parameters():
        gradient = state["gradients"].get(name)
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    block.open = {}
    for kept in state["open"]:
        _reopen(block, kept)


def _pass_state(p: ModulePass) -> dict[str, Any]:
    return {
        "batch_id": p.batch.batch_id,
        "version": p.batch.version,
        "fields": dict(p.batch.fields),
        "entered": p.entered.detach(),
        "h": p.h,
        "stashed": {name: weight.detach() for name, weight in p.stashed.items()},
        "kept": dict(p.kept),
        "answered": sorted(p.answered),
        "is_complete": p.is_complete,
    }


def _reopen(block: Block, kept: Mapping[str, Any]) -> None:
    from actors.module_pass import ModulePass

    batch = Batch(kept["batch_id"], kept["version"], block.on_device(kept["fields"]))
    block.open[batch.batch_id] = ModulePass.reopened(
        block.body,
        block.on_device({"h": kept["entered"]})["h"],
        batch,
        late=block.late,
        input_gradient=block.sends_gradient,
        precision=block.precision,
        stashed=block.on_device(kept["stashed"]),
        h=block.on_device({"h": kept["h"]})["h"],
        kept=block.on_device(kept["kept"]),
        answered=set(kept["answered"]),
        is_complete=kept["is_complete"],
    )


def _below(kind: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(f"{kind}."): value for name, value in state.items() if name.startswith(f"{kind}.")}
