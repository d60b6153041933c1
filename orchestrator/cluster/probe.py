"""What a node must share with the driver before anything is built on it: the run directory and the versions."""

from __future__ import annotations

import os
import platform
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

SEEN_WITHIN_S = 10.0
"""A network file system may hide a new file for some seconds."""
LOOK_EVERY_S = 0.1


def probe(mark: str, text: str) -> dict[str, Any]:
    """Return what a process sees; runs where an actor is to be.

    Args:
        mark: path of a file that the driver has written.
        text: what it holds.
    """
    return {"host": socket.gethostname(), "run_dir": _sees(Path(mark), text), **versions()}


def versions() -> dict[str, str]:
    """Return the versions that must agree: Python without its last number, Ray, torch without the kind of its build."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, "Ray": metadata.version("ray"), "torch": metadata.version("torch").split("+")[0]}


def refusal(actor: str, node: str, seen: Mapping[str, Any], run_dir: Path) -> str | None:
    """Return why an actor can't run where `seen` was seen, None if it can."""
    where = f"on node {node[:12]} ({seen['host']}), where {actor} is to run"
    for name, here in versions().items():
        if seen[name] != here:
            return (
                f"{name}: got {seen[name]} {where}, expected the driver's {here}; install the same version on every "
                f"node"
            )
    if seen["run_dir"] is not None:
        return (
            f"run_dir: {run_dir} {seen['run_dir']} {where}; give a folder that every node mounts at the same path, "
            f"such as run_dir=/shared/{run_dir.name}"
        )
    return None


@contextmanager
def marked(run_dir: Path) -> Iterator[tuple[str, str]]:
    """Keep a file in the run directory that others look for; yield its path and what it holds."""
    text = uuid.uuid4().hex
    mark = run_dir / f".seen-{text[:8]}"
    mark.write_text(text)
    try:
        yield str(mark), text
    finally:
        mark.unlink(missing_ok=True)


def _sees(mark: Path, text: str) -> str | None:
    until = time.monotonic() + SEEN_WITHIN_S
    while not (mark.exists() and mark.read_text() == text):
        if time.monotonic() >= until:
            return "is not visible"
        time.sleep(LOOK_EVERY_S)
    return None if os.access(mark.parent, os.W_OK | os.X_OK) else "can't be written"
