"""The config of a run: YAML files and overrides, merged and validated. Imports neither torch nor Ray."""

from orchestrator.config.load import (
    changed,
    config_from_mapping,
    expand_seeds,
    load_config,
    load_runs,
    plain_values,
    resolved,
    same_run,
)
from orchestrator.config.sections import RunConfig

__all__ = [
    "RunConfig",
    "changed",
    "config_from_mapping",
    "expand_seeds",
    "load_config",
    "load_runs",
    "plain_values",
    "resolved",
    "same_run",
]
