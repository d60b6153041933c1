"""Networks that come as one module: the user's, or torchvision's, cut into layers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import nn

from actors.errors import UserError
from actors.networks.fx_layers import fx_segments
from actors.networks.layer import Layer
from actors.seeds import seed_of


def user_module(factory: str, input_shape: tuple[int, ...], num_classes: int) -> Callable[[], nn.Module]:
    """Return a function that calls `package.module:function`.

    It is given `num_classes` and `input_shape` if its signature takes them.

    Raises:
        UserError: the path is malformed or does not import.
    """
    module_name, _, name = factory.partition(":")
    if not module_name or not name:
        raise UserError(
            f"network.factory: got {factory!r}, expected package.module:function; write both around a colon"
        )
    try:
        function = getattr(importlib.import_module(module_name), name)
        parameters = inspect.signature(function).parameters
    except Exception as error:  # whatever the user's module raises
        raise UserError(
            f"network.factory: {factory!r} does not import as a function ({type(error).__name__}: {error}); "
            f"check the name and PYTHONPATH"
        ) from None
    offered = {"num_classes": num_classes, "input_shape": input_shape}
    return lambda: function(**{key: value for key, value in offered.items() if key in parameters})


def module_layers(make: Callable[[], nn.Module], key: str, seed: int) -> list[Layer]:
    """Return the layers of one module, which is built once under (seed) and whose names stay as they are.

    Args:
        make: builds the module.
        key: dotted config path that an error names.
        seed: of the run.

    Raises:
        UserError: what was built is no module, or can't be cut into layers.
    """

    @cache
    def segments() -> dict[str, tuple[str, nn.Module]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "network"))
            module = make()
        if not isinstance(module, nn.Module):
            raise UserError(f"{key}: returned {type(module).__name__}, expected an nn.Module; return the network")
        if type(module) is nn.Sequential:
            layers = {name: (f"{name}.", child) for name, child in module._modules.items() if child is not None}
        else:
            layers = fx_segments(module, key)
        _check_weights(module, layers, key)
        return layers

    return [Layer(name, lambda name=name: segments()[name][1], prefix) for name, (prefix, _) in segments().items()]


def _check_weights(module: nn.Module, layers: Mapping[str, tuple[str, nn.Module]], key: str) -> None:
    """Refuse weights that two layers would share, as two blocks can't, or that no layer has."""
    held = [prefix + name for prefix, layer in layers.values() for name in layer.state_dict()]
    tensors = [id(t) for _, layer in layers.values() for t in (*layer.parameters(), *layer.buffers())]
    if sorted(held) != sorted(module.state_dict()) or len(tensors) != len(set(tensors)):
        raise UserError(
            f"{key}: {type(module).__name__} can't be cut so that every weight belongs to one layer "
            f"(shared or unused sub-modules); give every layer weights of its own"
        )
