"""What a config may name, as plain values: whoever knows torch fills it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Declared:
    """What a rule declares with given settings, anywhere in a chain.

    `feedback`: none, next_block or last_block. `late_credit`: feedback is pulled back through weights.
    `is_driven_by_raw_input`: some block starts a batch without its predecessor.
    """

    feedback: str
    late_credit: bool
    is_driven_by_raw_input: bool
    removes_locks: tuple[str, ...]


@dataclass(frozen=True)
class Plugin:
    """A rule or an objective. `declare` (rules only) takes the rule's settings."""

    name: str
    config: type[BaseModel]
    summary: str
    paper: str
    declare: Callable[[Mapping[str, Any]], Declared] | None = None


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
