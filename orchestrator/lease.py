"""One orchestrator per run: a locked file with a heartbeat and an epoch that grows with every new holder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from actors.errors import UserError

SILENT_S = 30.0
"""A holder on another machine that has not written for so long is gone."""
BEAT_EVERY_S = 5.0
LIVES = 10**6
"""Lives of an actor in one epoch; its incarnation is epoch x LIVES + life, so that a later holder's are higher."""


class Lease:
    """The right to run what is in a run directory. `epoch` counts its holders."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch = 0
        self._descriptor: int | None = None
        self._beat = 0.0

    def acquire(self) -> None:
        """Take the lease.

        Raises:
            UserError: another orchestrator holds it.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held = self._read(descriptor)
            os.close(descriptor)
            raise self._refused(held) from None
        held = self._read(descriptor)
        silent_s = time.time() - held.get("beat", 0.0)
        if held.get("held") and held.get("host") != socket.gethostname() and silent_s < SILENT_S:
            os.close(descriptor)
            raise self._refused(held)
        self._descriptor = descriptor
        self.epoch = int(held.get("epoch", 0)) + 1
        self._write(held=True)

    def beat(self) -> None:
        """Say that this holder lives; cheap to call often.

        Raises:
            UserError: another orchestrator has taken over.
        """
        if time.monotonic() - self._beat < BEAT_EVERY_S:
            return
        assert self._descriptor is not None
        held = self._read(self._descriptor)
        if held.get("epoch") != self.epoch:
            raise self._refused(held)
        self._write(held=True)

    def release(self) -> None:
        """Give the lease back."""
        if self._descriptor is not None:
            with suppress(OSError):  # on a full disk it ends with this process's lock
                if self._read(self._descriptor).get("epoch") == self.epoch:
                    self._write(held=False)
            os.close(self._descriptor)
            self._descriptor = None

    def _refused(self, held: dict[str, Any]) -> UserError:
        return UserError(
            f"run_dir: {self.path.parent} is being trained by process {held.get('pid', '?')} on "
            f"{held.get('host', '?')}; wait for it, stop it with `unlocked control {self.path.parent} stop`, or choose "
            f"another run_dir"
        )

    def _read(self, descriptor: int) -> dict[str, Any]:
        try:
            return json.loads(os.pread(descriptor, 4096, 0) or b"{}")
        except ValueError:
            return {}

    def _write(self, *, held: bool) -> None:
        assert self._descriptor is not None
        facts = {"epoch": self.epoch, "pid": os.getpid(), "host": socket.gethostname(), "beat": time.time()}
        data = json.dumps(facts | {"held": held}).encode().ljust(512)
        os.pwrite(self._descriptor, data, 0)
        self._beat = time.monotonic()
