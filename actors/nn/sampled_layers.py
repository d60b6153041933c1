"""Auxiliary networks made like the network above a block (Ma et al. 2024, 2402.17318).

The layers above a block are grouped into units, each with one layer that has weights and what follows it:
norm, activation, pooling. Some units are copied in order, with weights of their own, and end in a linear
classifier. Between two of them, average pooling stands in for the pooling of what was left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actors.errors import UserError
from actors.networks.body import Body
from actors.networks.layer import Layer
from actors.networks.private_input import keep_input_intact
from actors.nn.adapted import DoesNotFit, adapted, output_shape
from actors.nn.auxiliary_head import HeadConfig, auxiliary_head


@dataclass(frozen=True)
class Unit:
    """Layers of the network that are copied together.

    `shapes[i]` is the shape of one sample of layer i's input in the network.
    """

    layers: tuple[Layer, ...]
    shapes: tuple[tuple[int, ...], ...]


class SampledHead(nn.Module):
    """Copies of later layers, and a classifier.

    Args:
        later: the layers above the block, in order; the last with weights is the network's own classifier.
        shape: of one sample of the block's output.
        num_classes: scores to give.
        depth: units to copy; fewer if there are not as many, and a hidden layer of the auxiliary kind if none.

    Raises:
        UserError: a layer can't be copied for this place.
    """

    def __init__(self, later: Sequence[Layer], shape: tuple[int, ...], num_classes: int, depth: int) -> None:
        super().__init__()
        rest, units = grouped(later, shape)
        chosen = [units[place] for place in spread(len(units), depth)]
        layers, after = [], shape
        for unit in [*rest, *chosen]:
            module, after = _copied(unit, after)
            layers.append(Layer(unit.layers[0].name, lambda module=module: module, ""))
        # Its own seed, so that a layer's random draws differ from those of the layer it was copied from.
        self.body = Body(layers, seed=int(torch.randint(2**62, ())))
        keep_input_intact(self.body, shape)
        self.classifier = auxiliary_head(HeadConfig(kind="linear" if chosen else "auto"), after, num_classes)

    def forward(self, h: Tensor, draw: int | None = None) -> Tensor:
        """Return class scores [B, num_classes] of h [B, ...]; `draw` names the random draws of this pass."""
        return self.classifier(self.body(h, draw))


def grouped(later: Sequence[Layer], shape: tuple[int, ...]) -> tuple[list[Unit], list[Unit]]:
    """Return the units of the layers above a block whose output samples have `shape`.

    First the rest: none or one, what a cut through a convolution, its norm and its activation has left above
    the block. Then the hidden units; the last, which holds the network's classifier, is left out.
    """
    groups: list[list[tuple[Layer, tuple[int, ...]]]] = [[]]
    for layer in later:
        with torch.device("meta"):
            body = Body([layer], seed=0)
        if any(parameter.dim() > 1 for parameter in body.parameters()):
            groups.append([])
        groups[-1].append((layer, shape))
        shape = body.output_shape(shape)
    rest, *units = [Unit(*zip(*group, strict=True)) if group else None for group in groups]
    return [rest] if rest and units else [], [unit for unit in units if unit][:-1]


def spread(available: int, wanted: int) -> list[int]:
    """Return `wanted` places of 0, ..., available - 1, from the middles of equal stretches; all if too few."""
    count = min(available, wanted)
    return [(2 * index + 1) * available // (2 * count) for index in range(count)]


def _copied(unit: Unit, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a unit of one's own that takes samples of `shape`, and the shape of its output samples."""
    parts = _joint(shape, unit.shapes[0])
    shape = output_shape(nn.Sequential(*parts), shape)
    for layer, was in zip(unit.layers, unit.shapes, strict=True):
        try:
            parts.append(adapted(layer.build(), was, shape))
            shape = output_shape(parts[-1], shape)
        except DoesNotFit as reason:
            raise UserError(
                f"objective.name: auglocal got layer {layer.name!r} of the network, which can't follow samples of "
                f"shape {shape} ({reason}), expected convolutions, linear layers, norms, blocks of the resnet or "
                f"nn.Sequentials of them; put the layer together from these, or use objective.name=cross_entropy"
            ) from None
    return nn.Sequential(*parts), shape


def _joint(shape: tuple[int, ...], expected: tuple[int, ...]) -> list[nn.Module]:
    """Return what reduces samples of `shape` to the height and width, or to the vectors, that were expected."""
    if len(shape) != 3:
        return []
    if len(expected) == 1:
        return [nn.AdaptiveAvgPool2d((min(2, shape[1]), min(2, shape[2]))), nn.Flatten()]
    height, width = (min(has, wanted) for has, wanted in zip(shape[1:], expected[1:], strict=True))
    if (height, width) == shape[1:]:
        return []
    if shape[1] % height or shape[2] % width:
        return [nn.AdaptiveAvgPool2d((height, width))]
    return [nn.AvgPool2d((shape[1] // height, shape[2] // width))]
