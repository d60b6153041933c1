"""What `unlocked control` has set in a run, kept for the jobs that go on with it.

`config.yaml` holds the settings in force; `changes.json` says beside each what the job's command had given. A command
that gives the same again goes on with what `control` has set; one that gives another value means that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import Any

from actors.errors import UserError
from orchestrator.config import RunConfig, changed
from orchestrator.config.catalog import Catalog
from orchestrator.job_directory import run_dir_here
from orchestrator.run_directory import RunDirectory, write_json


def with_changes(config: RunConfig, catalog: Catalog) -> tuple[RunConfig, list[str]]:
    """Return the config of a command with what `control` has set in its run, and these as `key=value`.

    Raises:
        UserError: that does not go together with what the command gives.
    """
    changes = _read(RunDirectory(run_dir_here(config.run_dir, os.environ)))
    values = {key: own["set"] for key, own in changes.items() if _value(config, key) == own["given"] != own["set"]}
    words = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    if not values:
        return config, words
    try:
        return changed(config, values, catalog), words
    except UserError as error:
        raise UserError(f"{error} (control has set {' '.join(words)} in this run: give that anew, too)") from None


def keep_changes(directory: RunDirectory, given: RunConfig, after: RunConfig, keys: Collection[str]) -> None:
    """Write down what `control` has set, by the config before and after.

    Raises:
        OSError: the disk refuses it.
    """
    changes = _read(directory)
    for key in keys:
        first = changes.get(key, {"given": _value(given, key)})
        changes[key] = {**first, "set": _value(after, key)}
    write_json(directory.changes_json, changes)
    directory.write_config(after)


def forget_overruled(directory: RunDirectory, config: RunConfig) -> None:
    """Forget what a command has given anew.

    Raises:
        OSError: the disk refuses it.
    """
    changes = _read(directory)
    left = {key: own for key, own in changes.items() if _value(config, key) == own["set"]}
    if left != changes:
        write_json(directory.changes_json, left)


def _read(directory: RunDirectory) -> dict[str, Any]:
    try:
        return json.loads(directory.changes_json.read_text())
    except (OSError, ValueError):
        return {}


def _value(config: RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)
