"""A consumer's books: between two steps its program can say what became of every message it was handed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class Books:
    """Compares what the transport handed over on an edge with what the program accounts for.

    Args:
        received: returns how many messages of an edge the program has been handed.
        account: returns what it did with them: `trained`, `held`, and `dropped` by reason.
        position: returns the consumer's version.
    """

    def __init__(
        self,
        received: Callable[[str], int],
        account: Callable[[str], Mapping[str, Any]],
        position: Callable[[], int],
    ) -> None:
        self._received, self._account, self._position = received, account, position
        self.wrong: dict[str, dict[str, Any]] = {}
        """By edge, the first account that did not add up, and the version at which it did not."""

    def check(self, edge: str) -> None:
        """Compare, in the thread that runs the program, after a message of this edge has been handled."""
        if edge in self.wrong:
            return
        received, account = self._received(edge), self._account(edge)
        if account["trained"] + account["held"] + sum(account["dropped"].values()) != received:
            self.wrong[edge] = {"received": received, **account, "position": self._position()}
