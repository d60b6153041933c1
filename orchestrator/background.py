"""One call at a time beside the loop that watches a run, which picks its answer up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Background:
    """Makes calls one after another.

    Args:
        name: of what is done.
        is_beside: whether a thread of its own makes a call; else `begin` does, and its answer is there at once.
    """

    def __init__(self, name: str, *, is_beside: bool) -> None:
        self._name, self._is_beside = name, is_beside
        self._call: Future[Any] | None = None

    @property
    def is_free(self) -> bool:
        """Whether every answer has been picked up."""
        return self._call is None

    @property
    def has_answer(self) -> bool:
        """Whether there is one to pick up."""
        return self._call is not None and self._call.done()

    def begin(self, call: Callable[[], Any]) -> None:
        """Make a call; the answer of the one before has been picked up."""
        self._call = answer = Future()
        if self._is_beside:
            threading.Thread(target=_make, args=(call, answer), name=self._name, daemon=True).start()
        else:
            _make(call, answer)

    def answer(self) -> Any:
        """Wait for what the call returns, and pick it up; raises what the call has raised."""
        assert self._call is not None, "nothing has begun"
        call = self._call
        try:
            return call.result()
        finally:
            self._call = None


def _make(call: Callable[[], Any], answer: Future[Any]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:
        answer.set_exception(error)
