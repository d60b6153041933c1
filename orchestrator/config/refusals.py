"""What a valid section still may not say: rules that clash with a schedule, blocks that can't share an actor,
plug-ins and options that don't exist."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from actors.errors import UserError
from orchestrator.config.catalog import Catalog, Plugin
from orchestrator.config.durability import check_durability
from orchestrator.config.legality import check_schedule
from orchestrator.config.sections import (
    DataSection,
    NetworkSection,
    OptimizerSection,
    PluginSection,
    RunConfig,
    Section,
)
from orchestrator.config.sharing import check_sharing
from orchestrator.config.transports import check_transports

MOST_BLOCKS = 10**6
"""More than any network has, where cuts are not known yet."""

_UNION_MEMBER = re.compile(r"bool|int|float|str|\[key\]|(literal|list|dict|function-\w+)\[.*\]|constrained-\w+")
_WORDS: Mapping[str, str] = {
    r"^Value error, ": "", r"^Input should be ": "", r"^expected ": "", r", (unable to|got) .*$": "",
    r"a valid (dictionary|mapping).*$": "a section with keys", r"a valid ": "a ", r"a integer": "an integer",
    r"greater than or equal to": "at least", r"less than or equal to": "at most",
}  # fmt: skip
"""Patterns in pydantic's messages -> what stands there instead."""


def check(config: RunConfig, catalog: Catalog) -> None:
    """Refuse what can't be done.

    Raises:
        UserError: names the key, what it holds and what it may hold.
    """
    rule = _check_plugin(config.rule, "rule", catalog)
    _check_plugin(config.objective, "objective", catalog)
    check_schedule(config, rule)
    check_durability(config)
    check_transports(config)
    _check_network(config, catalog)
    _check_data(config, catalog)
    _check_optimizer(config, catalog)
    _check_indices("placement.blocks", config.placement.blocks, config.network)
    _check_indices("faults.slow", (slow.block for slow in config.faults.slow), config.network)
    num_blocks = _num_blocks(config.network)
    check_sharing(config, None if num_blocks == MOST_BLOCKS else num_blocks)
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


def _check_plugin(section: PluginSection, kind: str, catalog: Catalog) -> Plugin:
    known = catalog.rules if kind == "rule" else catalog.objectives
    _check_one_of_two(section, kind, known)
    if section.factory is not None:
        plugin = catalog.load_factory(kind, section.factory)
    else:
        plugin = known[_known_name(f"{kind}.name", str(section.name), known)]
    _check_options(plugin.config, section.options, kind, ("name", "factory"))
    return plugin


def _check_one_of_two(section: PluginSection | NetworkSection | DataSection, kind: str, known: Iterable[str]) -> None:
    if section.name is None and section.factory is None:
        raise UserError(
            f"{kind}: got neither name nor factory, expected one of them; "
            f"set {kind}.name to one of {', '.join(known)}, or set {kind}.factory"
        )
    if section.name is not None and section.factory is not None:
        raise UserError(
            f"{kind}: got name {section.name!r} and factory {section.factory!r}, expected one of them; "
            f"set the other to null"
        )


def _check_network(config: RunConfig, catalog: Catalog) -> None:
    network = config.network
    _check_one_of_two(network, "network", catalog.networks)
    if isinstance(network.blocks, int) and network.blocks < 1:
        raise UserError(f"network.blocks: got {network.blocks}, expected 1 or more; give the number of blocks")
    if network.num_blocks is not None and network.blocks != "auto":
        raise UserError(
            f"network.num_blocks: got {network.num_blocks} with network.blocks {network.blocks!r}, expected it only "
            f"with 'auto'; leave it out or set network.blocks=auto"
        )
    if network.blocks == "auto" and config.schedule.name == "sequential":
        raise UserError(
            "network.blocks: got 'auto' with schedule 'sequential', where one block trains at a time and balanced cuts "
            "gain nothing, expected a number; give a number of blocks"
        )
    own = tuple(key for key in type(network).model_fields if key != "options")
    if network.name is not None:
        model = catalog.networks[_known_name("network.name", network.name, catalog.networks)]
        _check_options(model, network.options, "network", own)
    elif network.options:
        raise _unknown("network", next(iter(network.options)), own)


def _check_data(config: RunConfig, catalog: Catalog) -> None:
    data = config.data
    _check_one_of_two(data, "data", catalog.datasets)
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
    _check_indices("optimizer.blocks", optimizer.blocks, config.network)
    for index, values in optimizer.blocks.items():
        groups[f"blocks.{index}"] = values
    for group, values in groups.items():
        where = f"optimizer.{group}"
        own_name = _known_name(f"{where}.name", str(values.get("name", name)), catalog.optimizers)
        _check_arguments(where, values, catalog.optimizers[own_name], ("name", "lr", "clip"))
        _check_values(OptimizerSection, {key: values[key] for key in ("lr", "clip") if key in values}, where)


def _check_indices(where: str, indices: Iterable[int], network: NetworkSection) -> None:
    num_blocks = _num_blocks(network)
    for index in indices:
        if not 0 <= index < num_blocks:
            raise UserError(f"{where}.{index}: expected the index of a block, 0 to {num_blocks - 1}; correct the index")


def _num_blocks(network: NetworkSection) -> int:
    if network.cuts is not None:
        return len(network.cuts) + 1
    if network.blocks == "auto":
        return network.num_blocks or MOST_BLOCKS
    return network.blocks if isinstance(network.blocks, int) else 1


def _check_arguments(where: str, values: Mapping[str, Any], known: Iterable[str], own: tuple[str, ...]) -> None:
    for key in values:
        if key not in known and key not in own:
            raise _unknown(where, key, (*own, *sorted(known)))


def _check_options(model: type[BaseModel], options: Mapping[str, Any], where: str, own: tuple[str, ...]) -> None:
    refuse_unknown(model, options, where, own)
    _check_values(model, options, where)


def _check_values(model: type[BaseModel], values: Mapping[str, Any], where: str) -> None:
    try:
        model(**values)
    except ValidationError as error:
        raise UserError(sentence(error, where)) from None


def refuse_unknown(model: type[BaseModel], raw: Any, where: str = "", own: tuple[str, ...] = ()) -> None:
    """Name an unknown key with the nearest known one before pydantic counts everything that is wrong.

    Args:
        model: what the keys must fit; sections inside it are looked at too.
        raw: the user's values.
        where: dotted path of `raw`.
        own: keys that are known beside those of the model.

    Raises:
        UserError: a key is unknown.
    """
    if not isinstance(raw, Mapping):
        return
    collects = issubclass(model, Section) and model.collects_options
    for key, value in raw.items():
        found = model.model_fields.get(str(key))
        if found is None and not collects:
            raise _unknown(where, str(key), (*own, *model.model_fields))
        kind = found.annotation if found is not None else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            refuse_unknown(kind, value, f"{where}.{key}" if where else str(key))


def _known_name(key: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "choose one of them"
        raise UserError(f"{key}: got {name!r}, expected one of {', '.join(names)}; {hint}")
    return name


def _unknown(where: str, key: str, known: Iterable[str]) -> UserError:
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "remove it"
    path = f"{where}.{key}" if where else key
    expected = f"expected one of {', '.join(names)}" if names else "expected no keys here"
    return UserError(f"{path}: unknown key, {expected}; {hint}")


def sentence(error: ValidationError, where: str = "") -> str:
    """Return the first mistake that pydantic found as one sentence."""
    mistakes: dict[str, list[str]] = {}
    for found in error.errors(include_url=False):
        mistakes.setdefault(_path(found["loc"], where), []).append(_expected(found["msg"]))
    path, expected = next(iter(mistakes.items()))
    got = error.errors(include_url=False)[0]["input"]
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{path}: got {got!r}, expected {' or '.join(dict.fromkeys(expected))}; correct the value{more}"


def _path(location: Iterable[int | str], where: str) -> str:
    """The dotted path of a mistake, without what pydantic adds for the members of a union."""
    parts = [str(part) for part in location]
    return ".".join([*([where] if where else []), *(part for part in parts if not _UNION_MEMBER.fullmatch(part))])


def _expected(message: str) -> str:
    """What pydantic wanted, in our words."""
    for pattern, words in _WORDS.items():
        message = re.sub(pattern, words, message)
    return message
