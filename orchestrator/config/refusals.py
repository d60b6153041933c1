"""What a valid section still may not say: keys whose capability this version lacks, rules that clash with
a schedule, plug-ins and options that don't exist."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from actors.errors import UserError
from orchestrator.config.catalog import Catalog, Plugin
from orchestrator.config.sections import PluginSection, RunConfig

_NOT_YET: Mapping[str, object] = {
    "staleness": None, "checkpoint": None, "recovery": None, "wire": None, "faults": None,
    "schedule.delay_per_hop": 0.0, "schedule.input_delay": None, "schedule.late": None,
    "schedule.feedback": "fixed",
    "buffers.mode": "fixed", "buffers.capacity_bytes": None, "buffers.order": None, "buffers.max_reuse": None,
    "buffers.on_full": None, "buffers.samples_per_insert": None, "buffers.tolerance": None,
    "training.precision": "fp32",
    "placement.blocks": None, "placement.blocks_per_actor": None, "placement.rebalance": None,
}  # fmt: skip
"""Key -> the only value that this version can do."""

_SCHEDULES: Mapping[str, frozenset[str]] = {
    "pipeline": frozenset({"none", "next_block", "last_block"}),
    "lockstep": frozenset({"none", "next_block", "last_block"}),
    "sequential": frozenset({"none"}),
    "replay": frozenset({"none"}),
}
"""Schedule -> the kinds of feedback that a rule may need under it."""

_AVAILABLE_SCHEDULES = ("pipeline", "lockstep")


def check(config: RunConfig, catalog: Catalog) -> None:
    """Refuse what can't be done.

    Raises:
        UserError: names the key, what it holds and what it may hold.
    """
    _check_available(config)
    rule = _check_plugin(config.rule, "rule", catalog)
    _check_plugin(config.objective, "objective", catalog)
    _check_schedule(config, rule)
    _check_network(config, catalog)
    _check_data(config, catalog)
    _check_optimizer(config, catalog)
    buffers = config.buffers
    if buffers.window is not None and buffers.window > buffers.capacity:
        raise UserError(
            f"buffers.window: got {buffers.window}, expected at most buffers.capacity = {buffers.capacity}; "
            f"lower the window or raise the capacity"
        )
    compilers = [os.environ.get("CXX", "c++"), "g++", "clang++"]
    if config.training.compile and not any(shutil.which(compiler) for compiler in compilers):
        raise UserError(
            "training.compile: got true, but no C++ compiler is on this machine, and torch.compile needs one; "
            "install g++ or set training.compile=false"
        )


def _check_available(config: RunConfig) -> None:
    for key, only in _NOT_YET.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if value != only:
            remedy = "remove it" if only is None else f"leave it at {only!r}"
            raise UserError(f"{key}: got {value!r}, which is not available in this version; {remedy}")
    if config.network.blocks == "auto":
        raise UserError("network.blocks: got 'auto', which is not available in this version; give a number of blocks")


def _check_plugin(section: PluginSection, kind: str, catalog: Catalog) -> Plugin:
    known = catalog.rules if kind == "rule" else catalog.objectives
    if (section.name is None) == (section.factory is None):
        raise UserError(
            f"{kind}: got name {section.name!r} and factory {section.factory!r}, expected exactly one; "
            f"names are {', '.join(known)}"
        )
    if section.factory is not None:
        plugin = catalog.load_factory(kind, section.factory)
    else:
        plugin = known[_known_name(f"{kind}.name", str(section.name), known)]
    _check_options(plugin.config, section.options, kind, ("name", "factory"))
    return plugin


def _check_schedule(config: RunConfig, rule: Plugin) -> None:
    name = config.schedule.name
    legal = [schedule for schedule, kinds in _SCHEDULES.items() if rule.feedback in kinds or not rule.feedback]
    if name not in legal:
        raise UserError(
            f"schedule.name: got {name!r} with rule {rule.name!r}, whose feedback comes from {rule.feedback}, "
            f"expected one of {', '.join(s for s in legal if s in _AVAILABLE_SCHEDULES)}; change the schedule or the rule"
        )
    if name not in _AVAILABLE_SCHEDULES:
        raise UserError(
            f"schedule.name: got {name!r}, which is not available in this version; "
            f"use {' or '.join(_AVAILABLE_SCHEDULES)}"
        )


def _check_network(config: RunConfig, catalog: Catalog) -> None:
    network = config.network
    if (network.name is None) == (network.factory is None):
        raise UserError(
            f"network: got name {network.name!r} and factory {network.factory!r}, expected exactly one; "
            f"names are {', '.join(catalog.networks)}"
        )
    if isinstance(network.blocks, int) and network.blocks < 1:
        raise UserError(f"network.blocks: got {network.blocks}, expected 1 or more; give the number of blocks")
    own = tuple(key for key in type(network).model_fields if key != "options")
    if network.name is not None:
        model = catalog.networks[_known_name("network.name", network.name, catalog.networks)]
        _check_options(model, network.options, "network", own)
    elif network.options:
        raise _unknown("network", next(iter(network.options)), own)


def _check_data(config: RunConfig, catalog: Catalog) -> None:
    data = config.data
    if (data.name is None) == (data.factory is None):
        raise UserError(
            f"data: got name {data.name!r} and factory {data.factory!r}, expected exactly one; "
            f"names are {', '.join(catalog.datasets)}"
        )
    if data.name is not None:
        _known_name("data.name", data.name, catalog.datasets)
    own = tuple(key for key in type(data).model_fields if key != "options")
    options = ("classes",) if data.name is None else catalog.datasets[data.name]
    for key in data.options:
        if key not in options:
            raise _unknown("data", key, (*own, *options))


def _check_optimizer(config: RunConfig, catalog: Catalog) -> None:
    optimizer = config.optimizer
    name = _known_name("optimizer.name", optimizer.name, catalog.optimizers)
    own = tuple(key for key in type(optimizer).model_fields if key != "options")
    _check_arguments("optimizer", optimizer.options, catalog.optimizers[name], own)
    groups = {"heads": optimizer.heads, "synthesizer": optimizer.synthesizer}
    groups |= {f"blocks.{index}": values for index, values in optimizer.blocks.items()}
    for group, values in groups.items():
        where = f"optimizer.{group}"
        own_name = _known_name(f"{where}.name", str(values.get("name", name)), catalog.optimizers)
        _check_arguments(where, values, catalog.optimizers[own_name], ("name", "lr", "clip"))


def _check_arguments(where: str, values: Mapping[str, Any], known: Iterable[str], own: tuple[str, ...]) -> None:
    for key in values:
        if key not in known and key not in own:
            raise _unknown(where, key, (*own, *sorted(known)))


def _check_options(model: type[BaseModel], options: Mapping[str, Any], where: str, own: tuple[str, ...]) -> None:
    for key in options:
        if key not in model.model_fields:
            raise _unknown(where, key, (*own, *model.model_fields))
    try:
        model(**options)
    except ValidationError as error:
        raise UserError(sentence(error, where)) from None


def _known_name(key: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "choose one of them"
        raise UserError(f"{key}: got {name!r}, expected one of {', '.join(names)}; {hint}")
    return name


def _unknown(where: str, key: str, known: Iterable[str]) -> UserError:
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "remove it"
    path = f"{where}.{key}" if where else key
    return UserError(f"{path}: unknown key, expected one of {', '.join(names)}; {hint}")


def sentence(error: ValidationError, where: str = "") -> str:
    """Return the first mistake that pydantic found as one sentence."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "literal["))]
    path = ".".join([where, *location] if where else location) or "config"
    if first["type"] == "extra_forbidden":
        return str(_unknown(where, location[-1], ()))
    got = first.get("input")
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{path}: got {got!r}, expected {expected.removeprefix('expected ')}; correct the value{more}"
