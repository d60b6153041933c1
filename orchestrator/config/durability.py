"""How a run survives the loss of a process: what the config says, with its defaults. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from actors.errors import UserError
from orchestrator.config.credentials import has_password
from orchestrator.config.sections import RunConfig

DEFAULT_EVERY_S = 60.0


@dataclass(frozen=True)
class Durability:
    """What is kept, how often, and who returns to it.

    Args:
        mode: `local`, `global` or `none`.
        every_batches, every_s: between checkpoints; both None: only when asked for, and at the end.
    """

    mode: str
    every_batches: int | None
    every_s: float | None

    @property
    def is_periodic(self) -> bool:
        """Whether checkpoints are taken without being asked for."""
        return self.every_batches is not None or self.every_s is not None


def durability(config: RunConfig) -> Durability:
    """Return the settings of a run."""
    checkpoint, is_ray = config.checkpoint, config.placement.backend == "ray"
    every_s = checkpoint.every_s
    if every_s is None and checkpoint.every_batches is None and is_ray:
        every_s = DEFAULT_EVERY_S
    every_s = every_s or None
    is_periodic = every_s is not None or checkpoint.every_batches is not None
    mode = config.recovery.mode or ("local" if is_ray and is_periodic else "none")
    return Durability(mode, checkpoint.every_batches, every_s)


def check_durability(config: RunConfig) -> None:
    """Refuse what can't be kept.

    Raises:
        UserError: names the key.
    """
    found = durability(config)
    if found.mode == "local" and not found.is_periodic:
        raise UserError(
            "recovery.mode: got 'local' without periodic checkpoints, so every message would be kept for ever; set "
            "checkpoint.every_batches or checkpoint.every_s, or recovery.mode=global"
        )
    if config.checkpoint.uri is not None and has_password(config.checkpoint.uri):
        raise UserError(
            "checkpoint.uri: got an address with a password in it, expected none, since it is written to config.yaml; "
            "give credentials by the environment"
        )
    is_in_memory = config.checkpoint.uri is not None and re.search(r"(^|::)memory://", config.checkpoint.uri)
    if is_in_memory and config.placement.backend == "ray":
        raise UserError(
            f"checkpoint.uri: got {config.checkpoint.uri!r}, which each process has for itself, with placement.backend "
            f"'ray', expected an address that all processes see; give a shared folder or an object store"
        )
    deadline = config.recovery.step_deadline_s
    if not isinstance(deadline, str) and not 0 < deadline < float("inf"):
        raise UserError(f"recovery.step_deadline_s: got {deadline}, expected more than 0, or auto; correct it")
    for index, kill in enumerate(config.faults.kill):
        if not re.fullmatch(r"block\d+|source|orchestrator", kill.actor):
            raise UserError(
                f"faults.kill.{index}.actor: got {kill.actor!r}, expected block0, block1, ..., source or orchestrator; "
                f"correct it"
            )
