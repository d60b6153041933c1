"""What every arm of the comparison trains: the network, the order of the data, the optimizer, made from one config.

The peers are plain torch; what they share with our own runs is this file's input: the same config, and so the same
initial weights, batches, optimizer, learning rates, precision and memory format.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from actors.datasets.batches import Batch, EvalBatches, TrainBatches
from actors.datasets.loading import load_data
from actors.networks.network import network_layers
from actors.optimizers import RateSchedule
from orchestrator.catalog import find_catalog
from orchestrator.config import RunConfig, load_config
from orchestrator.plan import Plan, make_plan
from orchestrator.specs import data_spec, network_spec

ROOT = Path(__file__).parent.parent.parent
OVERRIDES = ("training.epochs=1", "evaluation.every_epochs=0", "evaluation.splits=[]")
MLP = (
    "data.limit=51200", "network.blocks=null", "network.cuts=[hidden2]",
)  # fmt: skip
NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cnn": ("configs/fashion_mnist_cnn_large.yaml", ("data.limit=38400",)),
    "mlp": ("configs/fashion_mnist_mlp.yaml", MLP),
}
"""The compute-bound network and the overhead-bound one; every batch is full, as pipelining requires it."""
KEEP_EVERY = 39
"""Batches between two copies of the weights, where these are kept for `peers_accuracy.py`."""


def config_of(network: str, overrides: Sequence[str] = (), rule: str = "dgl") -> RunConfig:
    """Return the config of a network of `NETWORKS` under a method of configs/methods."""
    file, own = NETWORKS[network]
    return load_config(
        [ROOT / file, ROOT / f"configs/methods/{rule}.yaml"], [*OVERRIDES, *own, *overrides], find_catalog()
    )


class Trainer(Protocol):
    """One process of an arm."""

    def step(self, batch: Batch) -> Tensor | None:
        """Train on a batch and return its loss, or None where another process knows it."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what this process holds of the network, by names in the whole network."""
        ...


@dataclass(frozen=True)
class Work:
    """One training, made from a config."""

    config: RunConfig

    @cached_property
    def plan(self) -> Plan:
        """Cuts and sizes."""
        return make_plan(self.config)

    @cached_property
    def _layers(self) -> list[tuple[str, nn.Module]]:
        shape, classes = self.plan.raw.shape, self.plan.num_classes
        layers = network_layers(network_spec(self.config), shape, classes, self.config.seed)
        return [(layer.name, layer.build()) for layer in layers]

    def module(self, block: int | None = None) -> nn.Module:
        """Return the network, or the part of it that is a block; of one Work it is made once."""
        names = None if block is None else self.plan.blocks[block]
        parts = OrderedDict((name, layer) for name, layer in self._layers if names is None or name in names)
        module = nn.Sequential(parts)
        return module.to(memory_format=torch.channels_last) if self.is_channels_last else module  # type: ignore[call-overload]

    @property
    def is_channels_last(self) -> bool:
        """Whether images are kept channel by channel."""
        return self.config.training.channels_last

    def inputs(self, batch: Batch) -> Tensor:
        """Return a batch's inputs [B, C, H, W] in the memory format of the config."""
        return batch.inputs.contiguous(memory_format=torch.channels_last) if self.is_channels_last else batch.inputs

    def optimizer(self, module: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        """Return the optimizer of the config, and what sets its rate after every step."""
        section = self.config.optimizer
        kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimizer = kinds[section.name](module.parameters(), lr=section.lr, **section.options)
        schedule = RateSchedule(section.schedule.name, total=self.plan.num_batches)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)

    def batches(self) -> Iterator[Batch]:
        """Return the training batches, in the order of our own runs."""
        spec = data_spec(self.config)
        return TrainBatches(load_data(spec), spec, self.config.training.epochs).stream()

    def accuracy(self, state: dict[str, Tensor]) -> float:
        """Return the test accuracy of the whole network with these weights, a fraction of 1."""
        module = self.module().eval()
        module.load_state_dict(state)
        test = load_data(data_spec(self.config)).test
        correct = 0
        with torch.no_grad():
            for batch in EvalBatches(test, 500):
                correct += int((module(self.inputs(batch)).argmax(dim=1) == batch.labels).sum())
        module.train()
        return correct / len(test)


def first_losses(trainer: Trainer, work: Work, count: int) -> list[float | None]:
    """Train on the first batches and return their losses, None where another process knows them."""
    losses = [trainer.step(batch) for batch in islice(work.batches(), count)]
    return [None if loss is None else float(loss) for loss in losses]
