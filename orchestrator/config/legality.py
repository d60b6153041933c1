"""Which rule works under which schedule, with which delays and buffers. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from actors.errors import UserError
from actors.replay_buffer import ReplaySettings, cannot_progress
from orchestrator.config.catalog import Declared, Plugin
from orchestrator.config.sections import BuffersSection, RunConfig

_SCHEDULES: Mapping[str, bool] = {"pipeline": True, "lockstep": True, "sequential": False, "replay": False}
"""Schedule -> whether it works with feedback that comes after a fixed delay."""

DROPPING_ROOM = 8
FIFO = ReplaySettings(capacity=1, order="fifo", max_reuse=1, on_full="block")
"""Each message once, in order: `pipeline` with feedback as it arrives."""


def check_schedule(config: RunConfig, rule: Plugin) -> None:
    assert rule.declare is not None
    declared, name = rule.declare(config.rule.options), config.schedule.name
    arrives = config.schedule.feedback == "as_it_arrives"
    legal = [schedule for schedule, fixed in _SCHEDULES.items() if declared.feedback == "none" or fixed or arrives]
    if name not in legal:
        also = ", or set schedule.feedback=as_it_arrives" if name == "replay" else ""
        raise UserError(
            f"schedule.name: got {name!r} with rule {rule.name!r}, whose feedback comes from {declared.feedback}, "
            f"expected one of {', '.join(legal)}; change one of the two{also}"
        )
    _check_delays(config, rule.name, declared)
    _check_buffers(config, declared)


def _check_delays(config: RunConfig, rule: str, declared: Declared) -> None:
    schedule = config.schedule
    useless = {
        "delay_per_hop": schedule.delay_per_hop > 0 and declared.feedback == "none" and "has no feedback to delay",
        "late": schedule.late is not None and not declared.late_credit and "pulls no late credit through weights",
        "input_delay": schedule.input_delay is not None
        and not declared.is_driven_by_raw_input
        and "is not driven by the raw input",
    }
    for key, why in useless.items():
        if why:
            raise UserError(
                f"schedule.{key}: got {getattr(schedule, key)!r} with rule {rule!r}, which {why}; leave the key out"
            )
    needed = (schedule.input_delay or 1) - 2
    if declared.is_driven_by_raw_input and config.staleness.max is not None and config.staleness.max < needed:
        raise UserError(
            f"staleness.max: got {config.staleness.max} with schedule.input_delay {schedule.input_delay}, expected at "
            f"least {needed}: a block would wait for the next one to train on an activation that is not due there yet; "
            f"raise the bound or lower the delay"
        )
    if schedule.name == "lockstep" and schedule.delay_per_hop > 0 and declared.late_credit:
        raise UserError(
            f"schedule.delay_per_hop: got {schedule.delay_per_hop:g} with lockstep, which finishes every batch before "
            f"the next, expected 0; set schedule.delay_per_hop=0 or schedule.name=pipeline"
        )


def _check_buffers(config: RunConfig, declared: Declared) -> None:
    """Replay's own keys elsewhere, and settings under which a block could stop for ever."""
    buffers, is_replay = config.buffers, config.schedule.name == "replay"
    own = ("capacity_bytes", "order", "max_reuse", "on_full", "samples_per_insert", "tolerance")
    for key in () if is_replay else own:
        if getattr(buffers, key) is not None:
            raise UserError(
                f"buffers.{key}: got {getattr(buffers, key)!r} with schedule {config.schedule.name!r}, which has no "
                f"replay buffer; leave it out or set schedule.name=replay"
            )
    _check_auto(config)
    if config.schedule.feedback == "as_it_arrives":
        if config.schedule.name not in ("pipeline", "replay") or declared.feedback == "none":
            raise UserError(
                f"schedule.feedback: got 'as_it_arrives' with schedule {config.schedule.name!r} and feedback "
                f"{declared.feedback}, expected pipeline or replay and a rule with feedback; leave it out"
            )
        if declared.is_driven_by_raw_input or config.schedule.delay_per_hop:
            raise UserError(
                "schedule.feedback: got 'as_it_arrives' beside fixed delays (delay_per_hop, or inputs driven by raw "
                "data), expected one of the two; set schedule.delay_per_hop=0 or schedule.feedback=fixed"
            )
        if declared.feedback == "last_block" and is_replay and (buffers.max_reuse or 1) != 1:
            raise UserError(
                f"buffers.max_reuse: got {buffers.max_reuse}, expected 1 where feedback comes from the last block, "
                f"which knows it by its batch; set it to 1"
            )
    if is_replay and (reason := cannot_progress(replay_settings(buffers), config.staleness.max)):
        raise UserError(f"buffers: {reason}")


def _check_auto(config: RunConfig) -> None:
    buffers = config.buffers
    if buffers.mode == "auto" and config.schedule.name == "replay":
        raise UserError(
            "buffers.mode: got 'auto' with schedule 'replay', expected 'fixed': a replay buffer's capacity decides "
            "what is trained on, and waits can't tell what is best there; set buffers.mode=fixed"
        )
    if buffers.mode == "fixed" and buffers.budget_bytes is not None:
        raise UserError(
            f"buffers.budget_bytes: got {buffers.budget_bytes} with buffers.mode 'fixed', which keeps "
            f"buffers.capacity, expected none; set buffers.mode=auto or buffers.budget_bytes=null"
        )


def replay_settings(buffers: BuffersSection) -> ReplaySettings:
    """Return how a replay buffer keeps and gives out.

    Raises:
        UserError: it could stop for ever.
    """
    on_full = buffers.on_full or "block"
    try:
        return ReplaySettings(
            capacity=buffers.capacity,
            capacity_bytes=buffers.capacity_bytes,
            order=buffers.order or "least_used",
            max_reuse=buffers.max_reuse or (1 if on_full == "block" else None),
            on_full=on_full,
            samples_per_insert=buffers.samples_per_insert,
            tolerance=buffers.tolerance,
        )
    except ValueError as error:
        raise UserError(f"buffers: {error}") from None


def outbox_capacity(config: RunConfig) -> int:
    """Return how many messages may wait on an edge, before they are in a replay buffer if there is one.

    A consumer takes what has arrived between two uses, and may then drop what its buffer has no room for: its
    producer is not to wait for that, if it is less than `DROPPING_ROOM` times as fast.
    """
    is_dropping = config.schedule.name == "replay" and replay_settings(config.buffers).on_full != "block"
    return max(config.buffers.capacity, DROPPING_ROOM if is_dropping else 1)
