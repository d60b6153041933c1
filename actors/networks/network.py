"""From a `NetworkSpec` to its layers: a file of this folder, a torchvision model, or the user's module."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

import actors.networks
from actors.errors import UserError
from actors.networks.body import Body
from actors.networks.layer import Layer, seeded_layer
from actors.networks.user_module import module_layers, user_module


@dataclass(frozen=True)
class NetworkSpec:
    """A network by `name` with its `options`, or by `factory`; `weights` is a file to start from."""

    name: str | None = None
    factory: str | None = None
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def network_options() -> dict[str, type[BaseModel]]:
    """Return every built-in network's options model by its name."""
    modules = {name: _module(name) for _, name, _ in pkgutil.iter_modules(actors.networks.__path__)}
    return {name: module.Options for name, module in modules.items() if hasattr(module, "Options")}


def network_layers(spec: NetworkSpec, input_shape: tuple[int, ...], num_classes: int, seed: int) -> list[Layer]:
    """Return the layers of a network, first to last.

    Args:
        spec: which network.
        input_shape: shape of one sample, without the batch dimension.
        num_classes: outputs of the last layer.
        seed: of the run; initial weights depend on it and on the layers' names.

    Raises:
        UserError: the name, an option or the factory is not what it must be.
    """
    if spec.factory is not None:
        return module_layers(user_module(spec.factory, input_shape, num_classes), "network.factory", seed)
    options = network_options()
    if spec.name not in options:
        close = difflib.get_close_matches(str(spec.name), list(options), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
            f"network.name: got {spec.name!r}, expected one of {', '.join(sorted(options))}; {hint}"
            f"use one of them or network.factory"
        )
    module = _module(spec.name)
    values = _checked(options[spec.name], spec)
    if hasattr(module, "model"):
        return module_layers(lambda: module.model(values, input_shape, num_classes), "network.model", seed)
    return [seeded_layer(name, make, seed) for name, make in module.layers(values, tuple(input_shape), num_classes)]


def load_initial_weights(path: str, body: Body) -> None:
    """Fill a body from a safetensors file that holds at least its tensors.

    Raises:
        UserError: the file can't be read, or lacks a tensor of the body in the right shape.
    """
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            held = set(file.keys())
            missing = [name for name in body.named_state() if name not in held]
            if missing:
                raise UserError(
                    f"network.weights: {path} lacks {missing[0]!r} ({len(missing)} in all), expected every "
                    f"tensor of the network; export it from a run of the same network"
                )
            body.load_named_state({name: file.get_tensor(name) for name in body.named_state()})
    except (OSError, SafetensorError) as error:
        raise UserError(f"network.weights: {path} can't be read ({error}); give a .safetensors file") from None
    except KeyError as error:
        raise UserError(f"network.weights: {path}: {error.args[0]}; use the network it was made with") from None


def _checked(model: type[BaseModel], spec: NetworkSpec) -> BaseModel:
    try:
        return model(**spec.options)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(["network", *(str(part) for part in first["loc"])])
        if first["type"] != "extra_forbidden":
            raise UserError(f"{path}: got {first['input']!r}; {first['msg']}; change it") from None
        known = list(model.model_fields)
        close = difflib.get_close_matches(str(first["loc"][0]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "remove it"
        raise UserError(
            f"{path}: got an option that {spec.name} does not have, expected {', '.join(known)}; {hint}"
        ) from None


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{actors.networks.__name__}.{name}")
