"""A named layer: one tensor in, one tensor out, built with initial weights of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from actors.draws import forked_draws
from actors.errors import UserError
from actors.seeds import seed_of

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Layer:
    """One layer of a network.

    `build` makes the module; its initial weights depend on the run's seed and the layer's name only.
    `prefix` stands before its parameters' names in the network's state.
    """

    name: str
    build: Make
    prefix: str


def seeded_layer(name: str, make: Make, seed: int) -> Layer:
    """Return a layer whose module is made under a generator seeded by (seed, name)."""

    def build() -> nn.Module:
        with forked_draws():
            torch.manual_seed(seed_of(seed, "layer", name))
            return make()

    return Layer(name, build, f"{name}.")


def image_shape(name: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return channels, height and width of a sample.

    Raises:
        UserError: samples are no images.
    """
    if len(input_shape) != 3:
        raise UserError(
            f"network.name: {name} got samples of shape {input_shape}, expected images (channels, height, "
            f"width); use mlp, or other data"
        )
    return input_shape[0], input_shape[1], input_shape[2]
