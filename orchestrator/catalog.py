"""What can be chosen: rules, objectives, networks, data sets and optimizers, found in their folders."""

from __future__ import annotations

import inspect
from typing import Any, cast

from actors.datasets.loading import dataset_options
from actors.learning_rule import LearningRule
from actors.needs import Place
from actors.networks.network import network_options
from actors.optimizers import optimizer_arguments
from actors.plugins import find_plugin, import_plugin, plugin_names
from orchestrator.config.catalog import Catalog, Plugin


def find_catalog() -> Catalog:
    """Return everything that a config may name."""
    return Catalog(
        rules={name: _describe(name, find_plugin("rule", name)) for name in plugin_names("rule")},
        objectives={name: _describe(name, find_plugin("objective", name)) for name in plugin_names("objective")},
        networks=network_options(),
        datasets=dataset_options(),
        optimizers=optimizer_arguments(),
        load_factory=_load_factory,
    )


def _load_factory(kind: str, path: str) -> Plugin:
    return _describe(path, import_plugin(kind, path))


def _describe(name: str, found: type) -> Plugin:
    plugin = cast(Any, found)
    return Plugin(
        name=name,
        config=plugin.Config,
        summary=(inspect.getdoc(found) or "").split("\n")[0],
        paper=plugin.paper,
        feedback=_feedback(found) if issubclass(found, LearningRule) else "",
        removes_locks=tuple(getattr(plugin, "removes_locks", ())),
    )


def _feedback(rule: type[LearningRule]) -> str:
    """What flows backwards under a rule's default settings, seen in the middle of a chain."""
    return rule.needs(rule.Config(), Place(1, 3)).feedback.value
