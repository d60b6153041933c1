"""A run on disk: its config, status, metrics, checkpoints and summary. Private to its user."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from actors.errors import RunError, UserError
from orchestrator.config import RunConfig, config_from_mapping, resolved, same_run
from orchestrator.config.catalog import Catalog
from orchestrator.config.credentials import redacted
from orchestrator.job_directory import run_dir_here

_OWN = (
    "status.json", "metrics.jsonl", "summary.json", "timeline.json",
    "run_id", "tensorboard", "checkpoints", "control", "changes.json", "steps", "config.yaml",
)  # fmt: skip
_LEASE = "lease.json"

_CUT = {"network.blocks", "network.cuts"}
_FIXED = "the cut of this run is fixed"


class RunDirectory:
    """The folder of one run. Make it with `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_yaml = path / "config.yaml"
        self.status_json = path / "status.json"
        self.metrics_jsonl = path / "metrics.jsonl"
        self.summary_json = path / "summary.json"
        self.timeline_json = path / "timeline.json"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.control = path / "control"
        self.changes_json = path / "changes.json"
        self.lease_json = path / _LEASE
        self.steps = path / "steps"

    @classmethod
    def create(cls, config: RunConfig, *, fresh: bool = False, recut_refusal: str = _FIXED) -> RunDirectory:
        """Make the run's folder, or return that of a run of the same config.

        Args:
            config: the run's.
            fresh: an earlier run is to be deleted: whoever holds its lease must `begin` then.
            recut_refusal: why the earlier run can't go on with other blocks; empty if it can.

        Raises:
            UserError: the folder holds something else.
        """
        directory = cls(run_dir_here(config.run_dir, os.environ))
        with directory._usable():
            if directory.config_yaml.exists():
                if not fresh:
                    directory._check_same(config, recut_refusal)
                return directory
            if directory._is_taken():
                raise UserError(f"run_dir: {directory.path} exists and is no run; choose another run_dir")
            directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not fresh:
            directory.begin(config)
        return directory

    def begin(self, config: RunConfig) -> None:
        """Begin a run here; what an earlier one has written is deleted, except for its lease.

        Raises:
            UserError: the folder can't be used.
        """
        with self._usable():
            self._clear()
            self.path.chmod(0o700)
            self.checkpoints.mkdir()
            (self.path / "run_id").write_text(uuid.uuid4().hex)
            self.keep(config)

    def _is_taken(self) -> bool:
        """Whether what is there is no run's; one that was ended while it began has left its lease at most."""
        if not self.path.exists():
            return False
        return self.path.is_file() or any(path.name != _LEASE for path in self.path.iterdir())

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Say in a sentence why the folder can't be used."""
        try:
            yield
        except OSError as error:
            raise UserError(f"run_dir: {self.path} can't be used ({error.strerror}); choose another run_dir") from None

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Return an existing run.

        Raises:
            UserError: there is none at `path`.
        """
        directory = cls(Path(path).absolute())
        if not directory.config_yaml.is_file():
            raise UserError(f"{directory.path}: no run (it has no config.yaml); give the run_dir of a training run")
        return directory

    def config(self, catalog: Catalog) -> RunConfig:
        """Return the run's config. What it names as a `factory` is imported, so nobody else may have written it.

        Raises:
            UserError: it is damaged, or names a factory and belongs to another user.
        """
        held = self._read_config()
        for section, values in held.items():
            if isinstance(values, dict) and values.get("factory") is not None:
                self._check_own(f"{section}.factory")
        return config_from_mapping(held, catalog)

    def held_epochs(self) -> int:
        """Return the epochs that the run was last given.

        Raises:
            UserError: its config is damaged.
        """
        return self._read_config()["training"]["epochs"]

    def _check_own(self, key: str) -> None:
        for path in (self.path, self.config_yaml):
            if path.stat().st_uid != os.getuid():
                raise UserError(
                    f"{path}: belongs to user {path.stat().st_uid}, and its {key} would be imported, expected a run of "
                    f"your own; copy it if you trust it"
                )

    def keep(self, config: RunConfig) -> None:
        """Write the run's config, which may differ from the one before in what does not make it another run.

        Raises:
            UserError: the folder can't be written to.
        """
        with self._usable():
            self.write_config(config)

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml by rename."""
        partial = self.path / ".config.yaml.partial"
        partial.write_text(OmegaConf.to_yaml(OmegaConf.create(resolved(config))))
        partial.rename(self.config_yaml)

    def checkpoint_address(self, uri: str | None) -> str:
        """Return where the run's checkpoints are: `checkpoint.uri` if that is given, in a folder of the run's own."""
        return str(self.checkpoints) if uri is None else f"{uri.rstrip('/')}/{self.run_id[:12]}"

    def step_mark(self, actor: str) -> Path:
        """Return the file that says which batch an actor trains on; there is none where the disk refuses it."""
        with suppress(OSError):
            self.steps.mkdir(mode=0o700, exist_ok=True)
        return self.steps / actor

    @property
    def run_id(self) -> str:
        """Name of this run in every message."""
        return (self.path / "run_id").read_text()

    @property
    def is_finished(self) -> bool:
        """Whether a job has trained the run to the end that it was given."""
        return self.summary_json.exists() and self.read_summary()["status"] == "completed"

    def read_summary(self) -> dict[str, Any]:
        """Return summary.json."""
        return json.loads(self.summary_json.read_text())

    def read_status(self) -> dict[str, Any]:
        """Return status.json.

        Raises:
            UserError: the run has not written one.
        """
        if not self.status_json.exists():
            raise UserError(f"{self.path}: has no status yet; the run has not started")
        return json.loads(self.status_json.read_text())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json by rename.

        Raises:
            RunError: the disk refuses it.
        """
        try:
            write_json(self.summary_json, summary)
        except OSError as error:
            raise RunError(
                f"{self.summary_json}: can't be written ({error.strerror or error}), so the result is not kept; make "
                f"room and give the same command, which goes on from the newest checkpoint"
            ) from None

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Write status.json by rename."""
        write_json(self.status_json, status)

    def write_timeline(self, timeline: Mapping[str, Any]) -> None:
        """Write timeline.json by rename, compactly."""
        write_json(self.timeline_json, timeline, indent=None)

    def _check_same(self, config: RunConfig, recut_refusal: str) -> None:
        differing = same_run(redacted(self._read_config()), resolved(config))
        if differing and set(differing) <= _CUT:
            if recut_refusal:
                raise UserError(
                    f"run_dir: {self.path} was cut into other blocks ({', '.join(differing)}), and {recut_refusal}; "
                    f"leave them as they were, choose another run_dir, or start anew with --fresh"
                )
        elif differing:
            raise UserError(
                f"run_dir: {self.path} holds another run (it differs in {', '.join(differing[:5])}); "
                f"choose another run_dir, or start anew with --fresh"
            )

    def _read_config(self) -> dict[str, Any]:
        """Return what stands in config.yaml, interpolations resolved: an unresolved one hides what it names."""
        try:
            held = OmegaConf.to_container(OmegaConf.load(self.config_yaml), resolve=True)
        except (YAMLError, OmegaConfBaseException, UnicodeDecodeError):
            held = None
        if not isinstance(held, dict):
            raise UserError(
                f"run_dir: {self.config_yaml} is damaged; choose another run_dir, or start anew with --fresh"
            )
        return {str(key): value for key, value in held.items()}

    def discard(self) -> None:
        """Delete a run that never started to train."""
        self._clear()
        self.lease_json.unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _clear(self) -> None:
        """Delete what a run writes, and nothing else; its lease stays."""
        for name in _OWN:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def held_cuts(config: RunConfig) -> list[str] | None:
    """Return the cuts that were found for `network.blocks: auto` when the run of a config began; None: it has not."""
    directory = RunDirectory(run_dir_here(config.run_dir, os.environ))
    if not directory.config_yaml.is_file():
        return None
    network = directory._read_config().get("network", {})
    return network.get("cuts") if network.get("blocks") == "auto" else None


def write_json(path: Path, value: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w") as file:
            json.dump(value, file, indent=indent)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
