"""What can be chosen: rules, objectives, networks, data sets and optimizers, found in their folders."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from actors.datasets.loading import dataset_options
from actors.learning_rule import LearningRule
from actors.needs import Driver, Feedback, Place
from actors.networks.network import network_options
from actors.optimizers import optimizer_arguments
from actors.plugins import find_plugin, import_plugin, plugin_names
from orchestrator.config.catalog import Catalog, Declared, Plugin


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
        declare=partial(_declared, found) if issubclass(found, LearningRule) else None,
    )


def _declared(rule: type[LearningRule], settings: Mapping[str, Any]) -> Declared:
    """What a rule declares with these settings for some block of a chain; credit may reach some blocks only."""
    config = rule.Config(**settings)
    needs = [rule.needs(config, Place(index, 4)) for index in range(4)]
    fed = [need for need in needs if need.feedback is not Feedback.NONE]
    return Declared(
        feedback=fed[0].feedback.value if fed else Feedback.NONE.value,
        late_credit=any(need.late_credit for need in fed),
        is_driven_by_raw_input=any(need.driver is Driver.RAW_INPUT for need in needs),
        removes_locks=tuple(rule.locks_removed(config)),
    )
