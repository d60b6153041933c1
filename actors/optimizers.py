"""The optimizers of one block: one per group (body, heads, synthesizer), from torch.optim.

The learning rate is a pure function of the number of updates, so a restored block needs no scheduler.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from actors.compiler import keep_compiler_away_from_optimizers
from actors.errors import UserError


@dataclass(frozen=True)
class RateSchedule:
    """How the learning rate changes with the number of updates.

    `warmup`: updates over which the rate rises from 0. `milestones`: updates at which `step`
    multiplies by `gamma`. `total`: updates of the run, where `cosine` reaches zero.
    """

    name: str = "constant"
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    total: int = 1

    def factor(self, update: int) -> float:
        """Return what the rate is multiplied by at the given update, counted from 0."""
        if update < self.warmup:
            return (update + 1) / self.warmup
        if self.name == "cosine":
            progress = (update - self.warmup) / max(1, self.total - self.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        if self.name == "step":
            return self.gamma ** sum(update >= milestone for milestone in self.milestones)
        return 1.0


@dataclass(frozen=True)
class OptimizerSpec:
    """One group's optimizer: a name of torch.optim in lower case, its arguments, clipping, schedule."""

    name: str
    arguments: Mapping[str, Any]
    clip: float | None = None
    schedule: RateSchedule = field(default_factory=RateSchedule)


def optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Return torch's optimizers by lower-case name, those apart that need more than gradients."""
    skipped = {"lbfgs", "sparseadam", "optimizer"}
    return {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and name.lower() not in skipped
    }


def optimizer_arguments() -> dict[str, frozenset[str]]:
    """Return the keyword arguments of every optimizer by its name."""
    return {
        name: frozenset(inspect.signature(kind).parameters) - {"params"} for name, kind in optimizer_classes().items()
    }


class GroupOptimizer:
    """The optimizer of one parameter group of one block."""

    def __init__(self, spec: OptimizerSpec, parameters: Sequence[nn.Parameter]) -> None:
        self.spec = spec
        self.parameters = list(parameters)
        kind = optimizer_classes()[spec.name]
        keep_compiler_away_from_optimizers()
        try:
            self.optimizer = kind(self.parameters, **spec.arguments)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"optimizer: {spec.name} refuses {dict(spec.arguments)} ({error}); change the setting"
            ) from None
        self.base_rate = float(self.optimizer.param_groups[0]["lr"])
        self._step = inspect.unwrap(kind.step)

    def step(self, update: int, accumulated: int) -> None:
        """Average the gradients over `accumulated` batches, clip, step, and clear them."""
        if accumulated > 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(accumulated)
        if self.spec.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.spec.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_rate * self.spec.schedule.factor(update)
        with torch.no_grad():
            self._step(self.optimizer)
        for parameter in self.parameters:
            parameter.grad = None


def group_optimizers(
    specs: Mapping[str, OptimizerSpec], modules: Mapping[str, Iterable[nn.Module]]
) -> dict[str, GroupOptimizer]:
    """Return one optimizer for every group that has parameters to train."""
    found: dict[str, GroupOptimizer] = {}
    for group, members in modules.items():
        parameters = [p for module in members for p in module.parameters() if p.requires_grad]
        if parameters:
            found[group] = GroupOptimizer(specs[group], parameters)
    return found
