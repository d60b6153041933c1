"""Tells of troubles that a run goes on with: once when one begins, and when it is over."""

from __future__ import annotations

from collections.abc import Callable


class Notices:
    """The troubles of a run.

    Args:
        event: records what happened once.
        say: tells the user.
    """

    def __init__(self, event: Callable[..., None], say: Callable[[str], None]) -> None:
        self._event, self._say = event, say
        self._lasting: set[str] = set()

    def show(self, kind: str, reason: str, key: str | None = None) -> None:
        """Tell of a trouble, unless it is known to last.

        Args:
            kind: of the event.
            reason: one sentence.
            key: by which it is known; default: its kind.
        """
        key = key or kind
        if key not in self._lasting:
            self._lasting.add(key)
            self._event(event=kind, reason=reason)
            self._say(reason)

    def over(self, key: str, text: str) -> None:
        """Tell that a trouble is over, if it was told of."""
        if key in self._lasting:
            self._lasting.remove(key)
            self._say(text)

    def attempt(self, file: str, write: Callable[[], None]) -> None:
        """Write a file of the run; a disk that is full or read-only stops no training."""
        try:
            write()
        except OSError as error:
            self.show("not written", f"{file} can't be written ({error.strerror or error}); training goes on", file)
        else:
            self.over(file, f"{file} is written again")
