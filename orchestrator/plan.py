"""What a run will be made of, known before any actor starts: data facts, layers, cuts, shapes, needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from actors.datasets.batches import TrainBatches
from actors.datasets.loading import load_data
from actors.errors import UserError
from actors.learning_rule import LearningRule
from actors.needs import Needs, Place
from actors.networks.body import Body
from actors.networks.cuts import cut_layers
from actors.networks.layer import Layer
from actors.networks.network import network_layers
from actors.objective import Objective
from actors.plugins import plugin_class
from actors.spec import RawInput
from orchestrator.batch_norms import batch_norms
from orchestrator.codecs import edge_codecs
from orchestrator.config import RunConfig
from orchestrator.specs import data_spec, is_unordered, network_spec
from orchestrator.wiring import Wiring, wire

_PROBED_BYTES = 64 * 1024**2
"""Of a block's weights: up to here they are made, since torch imports its compiler to pass shapes through without."""


@dataclass(frozen=True)
class Plan:
    """The facts every spec is made from.

    `shapes[j]` is the shape of one sample of block j's input.
    """

    blocks: tuple[tuple[str, ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    needs: tuple[Needs, ...]
    wiring: Wiring
    raw: RawInput
    num_classes: int
    num_samples: int
    batches_per_epoch: int
    num_epochs: int
    num_evaluated: int = 0
    """Samples of one evaluation."""
    phase_batches: int | None = None
    """Under `sequential`: batches that each block trains on."""
    streams: tuple[int, int] = (1, 1)
    """How many times each sample travels from block to block, in training and in an evaluation."""

    def what(self, epochs: int) -> str:
        """Return what is trained for how long; `epochs`: the user's, which in phases count per block."""
        blocks, batches = f"training {len(self.blocks)} blocks", f"{self.num_batches} batches"
        if self.phase_batches is None:
            return f"{blocks}, {batches}"
        return f"{blocks} one after another, {epochs} epochs each, {self.num_epochs} in all, {batches}"

    @property
    def num_batches(self) -> int:
        """Batches that the source sends in all."""
        return self.num_epochs * self.batches_per_epoch

    def position(self, versions: Sequence[int]) -> int:
        """Return how many batches the whole chain is through; `versions` are its blocks', first to last."""
        return versions[-1] if self.phase_batches is None else sum(versions)


def make_plan(config: RunConfig) -> Plan:
    """Load the data's facts, cut the network and wire the blocks.

    Raises:
        UserError: data, network or cuts are not what they must be.
    """
    data = load_data(data_spec(config))
    batches = TrainBatches(data, data_spec(config), config.training.epochs)
    layers = network_layers(network_spec(config), data.input_shape, data.num_classes, config.seed)
    number = config.network.blocks
    assert number != "auto" or config.network.cuts is not None, "resolved before"
    blocks = cut_layers([layer.name for layer in layers], None if number == "auto" else number, config.network.cuts)
    bodies, shapes = _shapes(layers, blocks, data.input_shape, config.seed)
    needs = _needs(config, len(blocks))
    raw = RawInput(data.input_shape, data.train.mean, data.train.std)
    if batches.last_batch_size == 1:
        found = next(batch_norms(config, needs, layers, bodies, shapes, raw, data.num_classes), None)
        if found is not None:
            raise UserError(
                f"data.batch_size: got {config.data.batch_size}, which leaves a last batch of one sample of "
                f"{len(data.train)}, and batch norm needs two ({found} has it); choose another batch size or data.limit"
            )
    if is_unordered(config) and any("raw_input" in need.fields for need in needs):
        raise UserError(
            f"objective: {config.objective.name or config.objective.factory!r} needs the network's input beside the "
            f"activation, and schedule {config.schedule.name!r} uses batches out of order; use schedule.name=pipeline"
        )
    epochs, is_sequential = config.training.epochs, config.schedule.name == "sequential"
    wiring = wire(
        needs,
        schedule=config.schedule.name,
        delay_per_hop=config.schedule.delay_per_hop,
        input_delay=config.schedule.input_delay or 1,
    )
    edge_codecs(config.wire, wiring)  # refuses edges that the run does not have
    rule = _rule(config)
    return Plan(
        blocks=tuple(tuple(block) for block in blocks),
        shapes=shapes[:-1],
        needs=tuple(needs),
        wiring=wiring,
        raw=raw,
        num_classes=data.num_classes,
        num_samples=len(data.train),
        batches_per_epoch=batches.batches_per_epoch,
        num_evaluated=sum(
            len(split)
            for name, split in (("test", data.test), ("validation", data.validation))
            if split is not None and name in config.evaluation.splits
        ),
        num_epochs=epochs * len(blocks) if is_sequential else epochs,
        phase_batches=epochs * batches.batches_per_epoch if is_sequential else None,
        streams=rule.streams(rule.Config(**config.rule.options), data.num_classes),
    )


def layer_names(config: RunConfig) -> list[str]:
    """Return the names of the network's layers, first to last.

    Raises:
        UserError: data or network are not what they must be.
    """
    data = load_data(data_spec(config))
    layers = network_layers(network_spec(config), data.input_shape, data.num_classes, config.seed)
    return [layer.name for layer in layers]


def _rule(config: RunConfig) -> type[LearningRule]:
    return cast(type[LearningRule], plugin_class("rule", name=config.rule.name, factory=config.rule.factory))


def _needs(config: RunConfig, num_blocks: int) -> list[Needs]:
    """What rule and objective declare together, block by block."""
    rule = _rule(config)
    objective = cast(
        type[Objective], plugin_class("objective", name=config.objective.name, factory=config.objective.factory)
    )
    if num_blocks < rule.fewest_blocks:
        raise UserError(
            f"network.blocks: got {num_blocks} with rule {config.rule.name or config.rule.factory!r}, expected at "
            f"least {rule.fewest_blocks}; cut the network into more blocks"
        )
    settings = rule.Config(**config.rule.options)
    found = [rule.needs(settings, Place(index, num_blocks)) for index in range(num_blocks)]
    return [replace(need, fields=need.fields | (objective.fields if need.objective else frozenset())) for need in found]


def _shapes(
    layers: Sequence[Layer], blocks: Sequence[Sequence[str]], shape: tuple[int, ...], seed: int
) -> tuple[list[Body], tuple[tuple[int, ...], ...]]:
    """Build every block once and pass shapes through, without memory for the weights of a large one.

    Returns the bodies, and the shape of one sample of every block's input and of the last one's output.
    """
    by_name = {layer.name: layer for layer in layers}
    bodies, shapes = [], [tuple(shape)]
    for names in blocks:
        body = _weightless([by_name[name] for name in names], seed)
        if sum(parameter.nbytes for parameter in body.parameters()) <= _PROBED_BYTES:
            body = Body([by_name[name] for name in names], seed=seed)
        shapes.append(body.output_shape(shapes[-1]))
        bodies.append(body)
    return bodies, tuple(shapes)


def _weightless(layers: Sequence[Layer], seed: int) -> Body:
    with torch.device("meta"):
        return Body(layers, seed=seed)
