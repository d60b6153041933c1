"""The trained network of a run: put together from its checkpoint, evaluated, written to one file.

This is the one place where the orchestrator touches tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from actors.block import Block
from actors.datasets.batches import EvalBatches
from actors.datasets.loading import load_data
from actors.errors import UserError
from actors.networks.body import Body
from actors.networks.network import network_layers
from actors.plugins import plugin_class
from actors.storage import open_storage
from orchestrator.catalog import find_catalog
from orchestrator.checkpoints import Checkpoint, newest_checkpoint
from orchestrator.config import RunConfig, plain_values
from orchestrator.config.credentials import refuse_redacted
from orchestrator.plan import make_plan
from orchestrator.run_directory import RunDirectory
from orchestrator.specs import block_spec, data_spec, network_spec


def evaluate(run: str | Path) -> dict[str, Any]:
    """Evaluate a run's newest checkpoint on its test and validation data, block by block as the run did.

    Returns:
        Per split: `accuracy` (fraction of 1), `loss` (mean cross-entropy of the network's output), `num_samples`.

    Raises:
        UserError: `run` is no run directory, or its data need credentials.
        RunError: it holds no checkpoint that verifies.
    """
    config, checkpoint = _trained(run)
    refuse_redacted(plain_values(config))
    threads = max(config.placement.threads, torch.get_num_threads())
    data = load_data(data_spec(config))
    blocks = _restored_blocks(config, checkpoint)
    torch.set_num_threads(threads)  # building a block sets its own
    splits = {"test": data.test, "validation": data.validation}
    size = config.evaluation.batch_size or config.data.batch_size
    return {name: _evaluate(blocks, EvalBatches(split, size)) for name, split in splits.items() if split is not None}


def export(run: str | Path, file: str | Path) -> dict[str, Any]:
    """Write a run's network as one safetensors file with the names of the plain PyTorch module.

    Auxiliary heads are left out.

    Raises:
        UserError: `run` is no run directory, or the file can't be written.
        RunError: the run holds no checkpoint that verifies.
    """
    config, checkpoint = _trained(run)
    rule = plugin_class("rule", name=config.rule.name, factory=config.rule.factory)
    if reason := getattr(rule, "no_export", ""):
        raise UserError(f"export: rule {config.rule.name or config.rule.factory!r} {reason}; use `unlocked evaluate`")
    path = Path(file)
    if path.suffix != ".safetensors":
        raise UserError(f"export: got {path}, expected a name that ends in .safetensors; rename the file")
    state: dict[str, Tensor] = {}
    for index in range(len(checkpoint.shards)):
        state |= checkpoint.read(index)["body"]
    try:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"export: {path} can't be written ({error}); choose another place") from None
    return {
        "file": str(path),
        "num_tensors": len(state),
        "num_parameters": sum(t.numel() for t in state.values()),
    }


def assemble(config: RunConfig, input_shape: tuple[int, ...], num_classes: int) -> Body:
    """Return the whole network of a config with its initial weights, as one module."""
    layers = network_layers(network_spec(config), input_shape, num_classes, config.seed)
    return Body(layers, seed=config.seed)


def _trained(run: str | Path) -> tuple[RunConfig, Checkpoint]:
    directory = RunDirectory.open(run)
    config = directory.config(find_catalog())
    checkpoint, damaged = newest_checkpoint(open_storage(directory.checkpoint_address(config.checkpoint.uri)))
    for problem in damaged:
        sys.stderr.write(f"{problem}; the checkpoint at batch {checkpoint.position} is used\n")
    return config, checkpoint


def _restored_blocks(config: RunConfig, checkpoint: Checkpoint) -> list[Block]:
    """Build the run's blocks on this machine's processor, as they were at the checkpoint."""
    plan = make_plan(config)
    blocks = []
    for index, shape in enumerate(plan.shapes):
        spec = block_spec(config, plan, index, "evaluation")
        machine = replace(spec.machine, device="cpu", compile=False)
        block = Block(replace(spec, machine=machine, network=replace(spec.network, weights=None)), shape)
        block.restore(checkpoint.read(index))
        block.train(False)
        blocks.append(block)
    return blocks


def _evaluate(blocks: Sequence[Block], batches: EvalBatches) -> dict[str, Any]:
    correct = loss = count = 0.0
    with torch.no_grad():
        for batch in batches:
            scores = _scores(blocks, batch.inputs)
            loss += float(torch.nn.functional.cross_entropy(scores, batch.labels, reduction="sum"))
            correct += int((scores.argmax(dim=1) == batch.labels).sum())
            count += len(batch.labels)
    return {"accuracy": correct / count, "loss": loss / count, "num_samples": int(count)}


def _scores(blocks: Sequence[Block], h: Tensor) -> Tensor:
    """Return the last block's output [B, num_classes] for the network's input h [B, ...]."""
    for block in blocks:
        entered = block.rule.enter_evaluation(block.on_device({"h": h})["h"])
        with block.precision.autocast():
            h = block.rule.leave(block.body(entered))
    return h.float()
