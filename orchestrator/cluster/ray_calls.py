"""Answers of remote calls: waited for up to a deadline, and asked for again where a wire has lost them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray import exceptions

from actors.errors import RunError, UserError
from orchestrator.cluster.contract import Ended
from orchestrator.cluster.ray_session import first_line


def result_of(name: str, ref: Any, again: Callable[[], Any], deadline_s: float) -> Any:
    """Return what an actor answers while it is set up.

    Args:
        name: of the actor.
        ref: of the call.
        again: makes the call once more; whoever is called takes it twice alike.
        deadline_s: longest wait.

    Raises:
        UserError: the actor refused its settings.
        RunError: it failed, died, or was not ready in time.
    """
    until = time.monotonic() + deadline_s
    while True:
        try:
            return _answer(name, ref, max(0.0, until - time.monotonic()), deadline_s)
        except exceptions.ActorUnavailableError:
            ref = again()


def _answer(name: str, ref: Any, wait_s: float, deadline_s: float) -> Any:
    try:
        return ray.get(ref, timeout=wait_s)
    except exceptions.GetTimeoutError:
        raise RunError(f"{name}: not ready within placement.deadline_s = {deadline_s:.0f} s") from None
    except exceptions.ActorUnavailableError:
        raise  # of a wire, not of the actor; it is a RayActorError too
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise RunError(f"{name}: {error.cause!r}\n{error}") from None
    except exceptions.RayActorError as error:
        raise RunError(f"{name}: the process died while it was set up ({first_line(error)})") from None


def error_of(ref: Any) -> exceptions.RayError | None:
    """Return the error that a call has ended with, None if it has none."""
    try:
        ray.get(ref, timeout=0)
    except exceptions.RayError as error:
        return error
    return None


def failed(name: str, error: exceptions.RayError) -> Ended:
    """Return how an actor has ended whose run, or whose building, failed with this error."""
    if isinstance(error, exceptions.RayTaskError):
        cause = error.cause or error
        if isinstance(cause, UserError):
            return Ended(name, reason=str(cause.args[0]), is_mistake=True)
        return Ended(name, reason=f"{type(cause).__name__}: {cause}", traceback=str(error))
    return Ended(name, reason=f"its process died ({first_line(error)})", traceback=str(error), died=True)


class Told:
    """Calls whose answers nobody waits for; one that a wire has lost is repeated, since it may be made twice alike."""

    def __init__(self) -> None:
        self._calls: dict[Any, Callable[[], Any]] = {}

    def tell(self, call: Callable[[], Any]) -> None:
        """Make a call."""
        self._calls[call()] = call

    def again(self) -> None:
        """Repeat the calls that were lost."""
        if not self._calls:
            return
        ended, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for ref in ended:
            call = self._calls.pop(ref)
            if isinstance(error_of(ref), exceptions.ActorUnavailableError):
                self.tell(call)
