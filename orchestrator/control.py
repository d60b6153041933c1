"""`unlocked control`: requests to a running job, as files in its run directory. No port is opened.

The command writes `control/<time>-<id>.json` by rename; the orchestrator looks every 0.2 s, validates, queues
the change and answers in `<...>.answer.json`. Where a change then applied stands in `metrics.jsonl`.
"""

from __future__ import annotations

import difflib
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.errors import UserError
from orchestrator.config import RunConfig, changed
from orchestrator.config.catalog import Catalog
from orchestrator.config.legality import outbox_capacity, replay_settings
from orchestrator.run_directory import RunDirectory, write_json

ACTIONS = ("pause", "resume", "snapshot", "stop")
KEYS = (
    "staleness.max", "buffers.mode", "buffers.budget_bytes", "buffers.capacity", "buffers.capacity_bytes",
    "buffers.order", "buffers.max_reuse", "buffers.on_full", "buffers.samples_per_insert", "buffers.tolerance",
)  # fmt: skip
"""Keys that may change while a run goes on: under first in, first out they change its speed and no weight."""

LOOK_EVERY_S = 0.2
ANSWER_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Request:
    """What was asked for: an action, or new values by dotted key. `file` is answered beside it."""

    file: Path
    action: str | None
    values: Mapping[str, Any]


def ask(run: str | Path, words: Sequence[str], deadline_s: float = ANSWER_DEADLINE_S) -> str:
    """Send a request to a run and return its answer.

    Args:
        run: run directory.
        words: one of the actions, or key=value pairs.
        deadline_s: how long to wait for the answer.

    Raises:
        UserError: the run is unknown or finished, the request is refused, or nobody answers.
    """
    directory = RunDirectory.open(run)
    request = _parsed(words)
    state = directory.read_status()["state"]
    if state == "starting":
        raise UserError(f"{directory.path}: is starting, expected a running job; ask again once it trains")
    if state not in ("running", "paused"):
        raise UserError(f"{directory.path}: is {state}, expected a running job; nothing was changed")
    directory.control.mkdir(mode=0o700, exist_ok=True)
    file = directory.control / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
    write_json(file, request)
    answer = _answer_file(file)
    until = time.monotonic() + deadline_s
    try:
        while not answer.exists():
            if time.monotonic() > until:
                raise UserError(f"{directory.path}: nobody answered within {deadline_s:g} s; is the job still running?")
            time.sleep(0.02)
    finally:
        file.unlink(missing_ok=True)  # also where whoever asked gives up: no later job is to obey it
    answered = json.loads(answer.read_text())
    answer.unlink()
    if "refused" in answered:
        raise UserError(answered["refused"])
    return answered["accepted"]


def waiting(directory: RunDirectory) -> Iterator[Request]:
    """Yield the requests that have come, oldest first; each must be answered with `accept` or `refuse`."""
    if not directory.control.is_dir():
        return
    for file in sorted(directory.control.glob("*.json")):
        if file.name.startswith(".") or file.name.endswith(".answer.json"):
            continue
        try:
            raw = json.loads(file.read_text())
            request = Request(file, raw.get("action"), dict(raw.get("set", {})))
        except (OSError, ValueError, AttributeError, TypeError):
            refuse(Request(file, None, {}), f"{file.name}: not a request; use `unlocked control`")
            continue
        if request.action is not None and request.action not in ACTIONS:
            refuse(request, f"{file.name}: got {request.action!r}, expected one of {', '.join(ACTIONS)}; correct it")
            continue
        yield request


def refuse_left_over(directory: RunDirectory) -> None:
    """Refuse what was asked of an earlier job that ended before it answered; answers nobody waits for are deleted."""
    for answer in directory.control.glob("*.answer.json"):
        with suppress(OSError):
            answer.unlink()
    for request in waiting(directory):
        refuse(request, f"{directory.path}: the job ended before it answered, and another one begins; ask again")


def accept(request: Request, text: str) -> None:
    """Answer that a request is valid and queued."""
    _answer(request, {"accepted": text})


def refuse(request: Request, reason: str) -> None:
    """Answer why a request changes nothing."""
    _answer(request, {"refused": reason})


def check(config: RunConfig, request: Request, catalog: Catalog) -> RunConfig:
    """Return the run's config after a request.

    Raises:
        UserError: a key is unknown or may not change while the run goes on, or its value is not valid.
    """
    for key in request.values:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.75)
            hint = (
                f"did you mean {close[0]!r}?"
                if close
                else "other keys are fixed for a run, since changing them would change what it computes"
            )
            raise UserError(f"control: got {key!r}, expected one of {', '.join(KEYS)}; {hint}")
    after = changed(config, request.values, catalog)
    if after.buffers.mode == "auto" and "buffers.capacity" in request.values:
        raise UserError(
            f"buffers.capacity: got {after.buffers.capacity} while buffers.mode is 'auto', which sizes every buffer "
            f"itself, expected buffers.mode=fixed beside it; set both, or buffers.budget_bytes"
        )
    return after


def for_actors(config: RunConfig) -> dict[str, Any]:
    """Return the settings that actors change while they run, from a run's config."""
    is_replay, is_auto = config.schedule.name == "replay", config.buffers.mode == "auto"
    return {
        "bound": config.staleness.max,
        "replay": replay_settings(config.buffers) if is_replay else None,
    } | ({} if is_auto else {"capacity": outbox_capacity(config)})


def _parsed(words: Sequence[str]) -> dict[str, Any]:
    if len(words) == 1 and words[0] in ACTIONS:
        return {"action": words[0]}
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"control: got {word!r}, expected key=value or one of {', '.join(ACTIONS)}; correct it")
        values[key] = _plain(value)
    if not values:
        raise UserError(f"control: got nothing, expected key=value or one of {', '.join(ACTIONS)}; say what to change")
    return {"set": values}


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _answer(request: Request, answer: Mapping[str, str]) -> None:
    """Answer where a full disk lets us; else whoever asked gives up at its deadline, and the run goes on."""
    with suppress(OSError):
        write_json(_answer_file(request.file), answer)
    with suppress(OSError):
        request.file.unlink(missing_ok=True)


def _answer_file(file: Path) -> Path:
    return file.with_name(f"{file.stem}.answer.json")
