"""Where a run normalises over a batch, which a batch of one sample does not allow: layers, rules, objectives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch import nn

from actors.draws import forked_draws
from actors.learning_rule import Around, LearningRule
from actors.needs import Needs, Place
from actors.networks.body import Body
from actors.networks.layer import Layer
from actors.objective import Objective
from actors.plugins import plugin_class
from actors.spec import RawInput
from orchestrator.config import RunConfig


def batch_norms(
    config: RunConfig, needs: Sequence[Needs], layers: Sequence[Layer], bodies: Sequence[Body],
    shapes: Sequence[tuple[int, ...]], raw: RawInput, num_classes: int,
) -> Iterator[str]:  # fmt: skip
    """Yield what has batch norm, such as "block 0's objective", by building it.

    Args:
        needs: of every block.
        layers: of the whole network.
        bodies: of every block; their weights may be on the meta device.
        shapes: of one sample of every block's input, and of the last one's output.
        raw: the network's input.
    """
    names = [layer.name for layer in layers]
    for index, body in enumerate(bodies):
        place = Place(index, len(bodies))
        around = Around(
            shape=shapes[index + 1],
            num_classes=num_classes,
            body_input_shape=shapes[index],
            raw_shape=raw.shape,
            mean=raw.mean,
            std=raw.std,
            later=tuple(layers[names.index(body.names[-1]) + 1 :]),
        )
        with forked_draws():
            parts: dict[str, nn.Module] = {"layers": body, "rule": _rule(config, place, around)}
            if needs[index].objective:
                parts["objective"] = _objective(config, place, around)
        for kind, module in parts.items():
            if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
                yield f"block {index}'s {kind}"


def _rule(config: RunConfig, place: Place, around: Around) -> LearningRule:
    found = cast(type[LearningRule], plugin_class("rule", name=config.rule.name, factory=config.rule.factory))
    return found(found.Config(**config.rule.options), place, around)


def _objective(config: RunConfig, place: Place, around: Around) -> Objective:
    section = config.objective
    found = cast(type[Objective], plugin_class("objective", name=section.name, factory=section.factory))
    return found(found.Config(**section.options), place, around)
