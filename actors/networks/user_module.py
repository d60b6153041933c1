"""Networks that come as one module: the user's, or torchvision's, cut into layers."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from actors.draws import forked_draws
from actors.errors import UserError
from actors.networks.fx_layers import fx_segments
from actors.networks.layer import Layer
from actors.seeds import seed_of


def user_module(factory: str, input_shape: tuple[int, ...], num_classes: int) -> Callable[[], nn.Module]:
    """Return a function that calls `package.module:function`.

    It is given `num_classes` and `input_shape` if its signature takes them.

    Raises:
        UserError: the path is malformed, does not import, or asks for arguments that it is not given.
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
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    offered = {"num_classes": num_classes, "input_shape": input_shape}
    given = {key: value for key, value in offered.items() if takes_all or key in parameters}
    required = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in given
    ]
    if required:
        raise UserError(
            f"network.factory: {factory!r} asks for {required[0]!r}, expected at most num_classes and "
            f"input_shape; give it a default"
        )
    return lambda: function(**given)


def module_layers(make: Callable[[], nn.Module], key: str, seed: int) -> list[Layer]:
    """Return the layers of one module, which is made once under (seed) and whose names stay as they are.

    Every `build` of a layer returns a copy of its own.

    Args:
        make: builds the module.
        key: dotted config path that an error names.
        seed: of the run.

    Raises:
        UserError: what was built is no module, or can't be cut into layers.
    """

    @cache
    def segments() -> dict[str, tuple[str, nn.Module]]:
        with forked_draws():
            torch.manual_seed(seed_of(seed, "network"))
            module = make()
        if not isinstance(module, nn.Module):
            raise UserError(f"{key}: returned {type(module).__name__}, expected an nn.Module; return the network")
        if type(module) is nn.Sequential:
            return _children(module, key)
        return fx_segments(module, key)

    return [
        Layer(name, lambda name=name: copy.deepcopy(segments()[name][1]), prefix)
        for name, (prefix, _) in segments().items()
    ]


def _children(module: nn.Sequential, key: str) -> dict[str, tuple[str, nn.Module]]:
    # named_children() would leave out the second place of a module that stands in two.
    children = dict(module._modules.items())
    owners: dict[int, str] = {}
    for name, child in children.items():
        for tensor in [*child.parameters(), *child.buffers()]:
            owner = owners.setdefault(id(tensor), name)
            if owner != name:
                raise UserError(
                    f"{key}: children {owner!r} and {name!r} of the nn.Sequential share a weight, expected "
                    f"every weight in one layer; put both into one child"
                )
    if not children:
        raise UserError(f"{key}: returned an empty nn.Sequential, expected at least one layer; add one")
    return {name: (f"{name}.", child) for name, child in children.items() if child is not None}
