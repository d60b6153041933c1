"""`unlocked submit`: the same `train`, as a job of a Ray cluster where nothing of ours is installed.

What is sent: the working directory, and the packages if they are not in it. A mistake in the config is found here,
before anything is sent.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.errors import UserError
from orchestrator.job_directory import run_dir_in_job

STOP_WAIT_S = 60
"""From Ray's signal to a stopped job to its end; Ray's own 3 s are too short for a last snapshot."""
JOB_ENVIRONMENT: Mapping[str, str] = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
ENTRYPOINT = ("python", "-m", "orchestrator", "train")
EXCLUDES = ("/.git", "/.venv", "/venv", "/runs", "/data", "/dist", "/build", "__pycache__", "*.egg-info")
"""Never sent, in the form of .gitignore; what the folder's own .gitignore and .rayignore name is not sent either."""


def submit(
    files: Sequence[str],
    overrides: Sequence[str],
    *,
    address: str,
    directory: Path,
    environment: Mapping[str, str],
    fresh: bool = False,
    wait: bool = True,
) -> int:
    """Train as a job of the cluster whose job server is at `address`; the log goes to standard output.

    Args:
        files: config files inside `directory`.
        overrides: `key=value`, as `train` takes them.
        address: http:// or https:// address of the head's dashboard.
        directory: working directory, sent to the cluster.
        environment: where `UNLOCKED_RUNS` is looked up.
        fresh: start anew where the run directory holds an earlier run.
        wait: follow the log to the job's end.

    Returns:
        The exit code of the job's command; 1 if it was stopped; 0 if it was not waited for.

    Raises:
        UserError: the config, the address or the run directory can't be used.
        RunError: the line to the cluster broke.
    """
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address: got {address!r}, expected the http:// address of the head's dashboard, such as "
            f"http://127.0.0.1:8265; correct it"
        )
    inside = [_inside(file, directory) for file in files]
    place = run_dir_in_job(_run_dir(files, overrides), environment)
    others = [override for override in overrides if not override.startswith("run_dir=")]
    words = [*ENTRYPOINT, *inside, *others, f"run_dir={place}", *(["--fresh"] if fresh else [])]

    from orchestrator.cluster.job_client import JobClient

    client = JobClient(address)
    _say(f"sending {directory} to {address}")
    job = client.submit(shlex.join(words), runtime_env(directory))
    _say(f"job {job} trains into {place}; `ray job stop --address {address} {job}` ends it with a last snapshot")
    if not wait:
        return 0
    try:
        end = client.follow(job, lambda lines: print(lines, end="", flush=True))  # noqa: T201 - it is the job's output
    except KeyboardInterrupt:
        _say(f"no longer following; the job goes on: ray job logs --address {address} --follow {job}")
        return 130
    _say(f"job {job} {end.status}" + (f": {_last_line(end.message)}" if end.exit_code is None else ""))
    return 1 if end.exit_code is None else end.exit_code


def runtime_env(directory: Path) -> dict[str, Any]:
    """Return Ray's runtime environment of a job: the folder, the packages if they are not in it, the time to stop."""
    import actors
    import orchestrator

    packages = [Path(str(package.__file__)).resolve().parent for package in (actors, orchestrator)]
    missing = [str(package) for package in packages if package.parent != directory.resolve()]
    modules = {"py_modules": missing} if missing else {}
    return {
        "working_dir": str(directory),
        "excludes": list(EXCLUDES),
        "env_vars": dict(JOB_ENVIRONMENT),
        **modules,
    }


def _run_dir(files: Sequence[str], overrides: Sequence[str]) -> str | None:
    """Validate all runs; return the run directory that they have in common."""
    from orchestrator.catalog import find_catalog
    from orchestrator.config import load_runs

    catalog = find_catalog()
    load_runs(files, overrides, catalog)
    return load_runs(files, [*overrides, "seed=0"], catalog)[0].run_dir


def _inside(file: str, directory: Path) -> str:
    path = (directory / file).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise UserError(
            f"{file}: lies outside of {directory}, the folder that is sent to the cluster; submit from a folder that "
            f"holds it"
        )
    return path.relative_to(directory.resolve()).as_posix()


def _last_line(message: str) -> str:
    return message.splitlines()[-1] if message else "no reason given"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
