"""Where a job writes its run: a job's own directory ends with the job, so the place must be said in full."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from actors.errors import UserError

RUNS = "UNLOCKED_RUNS"
"""Environment variable: the folder, the same on every node, that takes the place of `runs/` in a job."""
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets in the process of a job's command."""


def run_dir_here(run_dir: str | None, environment: Mapping[str, str]) -> Path:
    """Return where this process writes its run: beside it, or in a job where `run_dir_in_job` says.

    Raises:
        UserError: as `run_dir_in_job`.
    """
    if JOB in environment:
        return Path(run_dir_in_job(run_dir, environment))
    return Path(run_dir or "runs/run").absolute()


def run_dir_in_job(run_dir: str | None, environment: Mapping[str, str]) -> PurePosixPath:
    """Return where a job writes its run: `run_dir`, below `UNLOCKED_RUNS` if it is relative.

    Raises:
        UserError: it is relative and there is no absolute `UNLOCKED_RUNS`.
    """
    path = PurePosixPath(run_dir or "runs/run")
    if path.is_absolute():
        return path
    root = PurePosixPath(environment.get(RUNS, ""))
    if not root.is_absolute():
        raise UserError(
            f"run_dir: got {path}, and a job's own directory ends with the job; give a path that every node sees, "
            f"such as run_dir=/shared/{path}, or set {RUNS} to a folder that takes the place of runs/"
        )
    return root / (path.relative_to("runs") if path.parts[:1] == ("runs",) else path)
