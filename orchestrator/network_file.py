"""The trained network of a run: put together from its checkpoint, evaluated, written to one file.

This is the one place where the orchestrator touches tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from actors.datasets.batches import EvalBatches
from actors.datasets.loading import load_data
from actors.errors import UserError
from actors.networks.body import Body
from actors.networks.network import network_layers
from actors.plugins import plugin_class
from orchestrator.catalog import find_catalog
from orchestrator.checkpoints import newest
from orchestrator.config import RunConfig, load_config
from orchestrator.run_directory import RunDirectory
from orchestrator.specs import data_spec, network_spec


def evaluate(run: str | Path) -> dict[str, Any]:
    """Evaluate a run's newest checkpoint on its test and validation data.

    Returns:
        Per split: `accuracy` (fraction of 1), `loss` (mean cross-entropy of the network's output), `num_samples`.

    Raises:
        UserError: `run` is no run directory.
        RunError: it holds no checkpoint that verifies.
    """
    config, state = _trained(run)
    data = load_data(data_spec(config))
    network = assemble(config, data.input_shape, data.num_classes)
    network.load_named_state(state)
    network.eval()
    torch.set_num_threads(max(config.placement.threads, torch.get_num_threads()))
    splits = {"test": data.test, "validation": data.validation}
    size = config.evaluation.batch_size or config.data.batch_size
    return {name: _evaluate(network, EvalBatches(split, size)) for name, split in splits.items() if split is not None}


def export(run: str | Path, file: str | Path) -> dict[str, Any]:
    """Write a run's network as one safetensors file with the names of the plain PyTorch module.

    Auxiliary heads are left out.

    Raises:
        UserError: `run` is no run directory, or the file can't be written.
        RunError: the run holds no checkpoint that verifies.
    """
    config, state = _trained(run)
    rule = plugin_class("rule", name=config.rule.name, factory=config.rule.factory)
    if reason := getattr(rule, "no_export", ""):
        raise UserError(f"export: rule {config.rule.name or config.rule.factory!r} {reason}; use `unlocked evaluate`")
    path = Path(file)
    if path.suffix != ".safetensors":
        raise UserError(f"export: got {path}, expected a name that ends in .safetensors; rename the file")
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


def _trained(run: str | Path) -> tuple[RunConfig, dict[str, Tensor]]:
    directory = RunDirectory.open(run)
    config = load_config([directory.config_yaml], [], find_catalog())
    checkpoint = newest(directory.checkpoints)
    state: dict[str, Tensor] = {}
    for index in range(len(checkpoint.shards)):
        block: Mapping[str, Any] = checkpoint.read(index)
        state |= block["body"]
    return config, state


def _evaluate(network: Body, batches: EvalBatches) -> dict[str, Any]:
    correct = loss = count = 0.0
    with torch.no_grad():
        for batch in batches:
            scores = network(batch.inputs)  # [B, num_classes]
            loss += float(torch.nn.functional.cross_entropy(scores, batch.labels, reduction="sum"))
            correct += int((scores.argmax(dim=1) == batch.labels).sum())
            count += len(batch.labels)
    return {"accuracy": correct / count, "loss": loss / count, "num_samples": int(count)}
