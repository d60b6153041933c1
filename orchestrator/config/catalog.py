"""What a config may name, as plain values: whoever knows torch fills it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel


@dataclass(frozen=True)
class Plugin:
    """A rule or an objective. `feedback` (rules only): none, next_block or last_block."""

    name: str
    config: type[BaseModel]
    summary: str
    paper: str
    feedback: str = ""
    removes_locks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalog:
    """Everything that can be chosen by name; `load_factory(kind, path)` imports a user's plug-in.

    `datasets` and `optimizers` map a name to the options it takes.
    """

    rules: Mapping[str, Plugin]
    objectives: Mapping[str, Plugin]
    networks: Mapping[str, type[BaseModel]]
    datasets: Mapping[str, tuple[str, ...]]
    optimizers: Mapping[str, frozenset[str]]
    load_factory: Callable[[str, str], Plugin]
