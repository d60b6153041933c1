"""Fetching a dataset once into the user's cache: into a folder beside its final place, then renamed, so a
reader never sees half a dataset and two processes may race."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.errors import UserError

TIMEOUT_S = 20.0


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/unlocked/data, by default ~/.cache/unlocked/data."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlocked" / "data"


def downloaded(name: str, fetch: Callable[[str], object], url: str, advice: str) -> Path:
    """The cached folder of dataset `name`, after `fetch(folder)` has filled it if it was not there.

    Raises UserError naming `url` and `advice` when fetching fails; each network wait ends after 20 s.
    """
    target = cache_folder() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{name}.") as folder, _socket_timeout():
            part = Path(folder) / "data"
            part.mkdir()
            fetch(str(part))
            try:
                part.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except (OSError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"data.name: {name} cannot be downloaded from {url} ({reason}); {advice}.") from error
    return target


@contextmanager
def _socket_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
