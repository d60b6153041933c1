"""One orchestrator per run: a locked file with a heartbeat and an epoch that grows with every new holder."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from actors.errors import UserError

SILENT_S = 30.0
"""A holder on another machine that has not written for so long is gone."""
BEAT_EVERY_S = 5.0
LOOK_S = 1.0
LIVES = 10**6
"""Lives of an actor in one epoch; its incarnation is epoch x LIVES + life, so that a later holder's are higher."""


class Lease:
    """The right to run what is in a run directory. `epoch` counts its holders.

    Where locks do not reach, two may take it at once and count the same epoch; whose token stands in the file has it.

    Args:
        path: the file.
        say: tells the user of a wait.
        sleep: waits.
    """

    def __init__(
        self, path: Path, say: Callable[[str], None] = lambda text: None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.path = path
        self.epoch = 0
        self._token = secrets.token_hex(8)
        self._say, self._sleep = say, sleep
        self._descriptor: int | None = None
        self._beat = 0.0
        self._turn = threading.Lock()
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lease, and say from now on that this holder lives, also while nobody calls `beat`.

        Where locks do not reach other machines, a holder there that may have died is watched until it is silent.

        Raises:
            UserError: another orchestrator holds it, or the file can't be used.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            self._take(descriptor)
        except BaseException as error:
            os.close(descriptor)
            raise (self._unusable(error) if isinstance(error, OSError) else error) from None
        threading.Thread(target=self._beat_on, args=(self._released,), name="lease", daemon=True).start()

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refused(self._read(descriptor)) from None
        held = self._read(descriptor)
        if held.get("held") and held.get("machine") != _machine():
            self._wait_for_silence(descriptor, held)
        self.epoch = int(held.get("epoch", 0)) + 1
        self._write(descriptor, held=True)
        self._descriptor, self._released = descriptor, threading.Event()

    def _wait_for_silence(self, descriptor: int, held: dict[str, Any]) -> None:
        left_s = min(SILENT_S, SILENT_S - (time.time() - held.get("beat", 0.0)))
        if left_s > 0:
            self._say(
                f"{self.path.parent} was being trained on {held.get('host')} just now; going on in {left_s:.0f} s, "
                f"unless that lives"
            )
        while left_s > 0:
            self._sleep(min(LOOK_S, left_s))
            left_s -= LOOK_S
            if (now := self._read(descriptor)) != held:
                raise self._refused(now)

    def beat(self) -> None:
        """Make sure that this is still the holder, and say now and then that it lives; cheap to call often.

        Raises:
            UserError: another orchestrator has taken over, or the lease has been given back.
            OSError: the disk refuses it.
        """
        with self._turn:
            if self._descriptor is None:
                raise UserError(f"run_dir: the lease of {self.path.parent} has been given back; begin the run again")
            held = self._read(self._descriptor)
            if not self._is_mine(held):
                raise self._refused(held)
            if time.monotonic() - self._beat >= BEAT_EVERY_S:
                self._write(self._descriptor, held=True)

    @property
    def is_held(self) -> bool:
        """Whether this is still the holder, as far as can be seen."""
        with self._turn, suppress(OSError):
            return self._descriptor is not None and self._is_mine(self._read(self._descriptor))
        return True

    def _is_mine(self, held: dict[str, Any]) -> bool:
        return (held.get("epoch"), held.get("token")) == (self.epoch, self._token)

    def _beat_on(self, released: threading.Event) -> None:
        while not released.wait(LOOK_S):
            try:
                self.beat()
            except OSError:
                continue  # whoever can tell the user meets it, too
            except UserError:
                return

    def release(self) -> None:
        """Give the lease back."""
        self._released.set()
        with self._turn:
            if self._descriptor is None:
                return
            with suppress(OSError):  # on a full disk it ends with this process's lock
                if self._is_mine(self._read(self._descriptor)):
                    self._write(self._descriptor, held=False)
            os.close(self._descriptor)
            self._descriptor = None

    def _refused(self, held: dict[str, Any]) -> UserError:
        return UserError(
            f"run_dir: {self.path.parent} is being trained by process {held.get('pid', '?')} on "
            f"{held.get('host', '?')}; wait for it, stop it with `unlocked control {self.path.parent} stop`, or choose "
            f"another run_dir"
        )

    def _unusable(self, error: OSError) -> UserError:
        return UserError(f"run_dir: {self.path} can't be used ({error.strerror or error}); choose another run_dir")

    def _read(self, descriptor: int) -> dict[str, Any]:
        try:
            return json.loads(os.pread(descriptor, 4096, 0) or b"{}")
        except ValueError:
            return {}

    def _write(self, descriptor: int, *, held: bool) -> None:
        facts = {
            "epoch": self.epoch, "token": self._token, "pid": os.getpid(), "host": socket.gethostname(),
            "machine": _machine(), "beat": time.time(), "held": held,
        }  # fmt: skip
        data = json.dumps(facts).encode().ljust(1024)
        os.pwrite(descriptor, data, 0)
        self._beat = time.monotonic()


def _machine() -> str:
    """Return what names the running kernel, whose locks reach all that see it; pods may share a host name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
