"""`network.blocks: auto`: cuts the network where every block takes about as long, and says so in the config.

Cuts are part of the method: they are found once, when a run begins, and kept in its config as `network.cuts`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import cast

import torch

from actors.errors import UserError
from actors.learning_rule import LearningRule
from actors.plugins import plugin_class
from orchestrator.balanced_cuts import balanced_starts, block_seconds
from orchestrator.catalog import find_catalog
from orchestrator.config import RunConfig
from orchestrator.config.refusals import check
from orchestrator.config.sections import ScheduleSection
from orchestrator.layer_costs import layer_costs
from orchestrator.plan import layer_names, make_plan
from orchestrator.run_directory import held_cuts

SECONDS = 3.0
"""Spent on measuring layers, about."""


def with_cuts(config: RunConfig, *, fresh: bool, show: Callable[[str], None]) -> RunConfig:
    """Return the config with its cuts: those of the run that it continues, or balanced ones.

    Raises:
        UserError: the network can't be cut into so many blocks.
    """
    if config.network.blocks != "auto" or config.network.cuts is not None:
        return config
    cuts = None if fresh else held_cuts(config)
    if cuts is None:
        cuts = balanced_cuts(config, [1.0] * _num_blocks(config), show)
    resolved = config.model_copy(update={"network": config.network.model_copy(update={"cuts": cuts})})
    check(resolved, find_catalog())  # what refers to a block by its index
    return resolved


def balanced_cuts(config: RunConfig, speeds: Sequence[float], show: Callable[[str], None]) -> list[str]:
    """Measure the layers and return those that start blocks 1, 2, ...

    Args:
        config: of the run.
        speeds: of each block's device.
        show: told of the progress.

    Raises:
        UserError: there are fewer layers than blocks.
    """
    names = layer_names(config)
    if len(speeds) > len(names):
        raise UserError(
            f"network.num_blocks: got {len(speeds)}, expected at most {len(names)}, the number of layers "
            f"({', '.join(names)}); lower it"
        )
    if len(speeds) == 1:
        return []
    num_threads, deterministic = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    try:
        single = _layer_by_layer(config, names)
        costs = layer_costs(single, make_plan(single), SECONDS, show)
    finally:
        torch.set_num_threads(num_threads)
        torch.set_deterministic_debug_mode(deterministic)
    return [names[start] for start in balanced_starts(len(names), block_seconds(costs), speeds=speeds)]


def _layer_by_layer(config: RunConfig, names: Sequence[str]) -> RunConfig:
    """The same run with every layer a block, first in, first out."""
    cuts = {"blocks": None, "num_blocks": None, "cuts": list(names[1:])}
    return config.model_copy(
        update={
            "network": config.network.model_copy(update=cuts),
            "optimizer": config.optimizer.model_copy(update={"blocks": {}}),
            "schedule": ScheduleSection(),
        }
    )


def _num_blocks(config: RunConfig) -> int:
    """As many as the config says, or as there are cores or GPUs for, but not more than layers."""
    network, placement = config.network, config.placement
    if network.num_blocks is not None:
        return network.num_blocks
    if placement.gpus_per_block:
        places = int(torch.cuda.device_count() / placement.gpus_per_block)
    else:
        places = len(os.sched_getaffinity(0)) // placement.threads
    rule = cast(type[LearningRule], plugin_class("rule", name=config.rule.name, factory=config.rule.factory))
    return min(max(places, rule.fewest_blocks, 1), len(layer_names(config)))
