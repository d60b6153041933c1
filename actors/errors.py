"""The exception tree of `unlocked`.

UserError            the user can fix it: shown as one sentence, exit code 2
RunError             the run can't go on: an actor died, an edge fell silent
└── EdgeError        a message or a `take` broke the contract of its edge
    ├── CorruptMessage   header or payload is not what was sent
    ├── MispairedMessage a message is not the one this place in the program must get
    ├── SessionRefused   a `take` came from an older life of the consumer
    └── LostReply        an answer never arrived, though its producer may be well
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake the user can fix: one sentence with where, got, expected and what to do."""


class RunError(RuntimeError):
    """The run cannot go on."""


class EdgeError(RunError):
    """A message or a call broke the contract of its edge."""


class CorruptMessage(EdgeError):
    """A header or payload that is not what the producer sent."""


class MispairedMessage(EdgeError):
    """A message that does not belong at this place of the consumer's program."""


class SessionRefused(EdgeError):
    """A `take` of an older session than the one the producer serves."""


class LostReply(EdgeError):
    """The answer to a `take` was lost on its way; what was in it is asked for again."""
