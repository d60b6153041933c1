"""What a program may ask of whoever runs it. A program never waits itself."""

from __future__ import annotations

from dataclasses import dataclass

from actors.messages import Message


@dataclass(frozen=True)
class Receive:
    """Wait for the next message of an edge; answered with it."""

    edge: str
    share: str = "wait_input"


@dataclass(frozen=True)
class ReceiveAny:
    """Wait for the next message of any of several edges; answered with (edge, message)."""

    edges: tuple[str, ...]
    share: str = "wait_input"

    @property
    def edge(self) -> str:
        """The edges by name, for a message to a person."""
        return " or ".join(self.edges)


@dataclass(frozen=True)
class Poll:
    """Take the next message of an edge if one comes within `wait_s` seconds; answered with it or None.

    On an edge that has ended, nothing comes.
    """

    edge: str
    wait_s: float = 0.0
    share: str = "wait_input"


@dataclass(frozen=True)
class Hear:
    """Wait until the producer of an edge has answered once; answered with the version below which earlier lives of
    this consumer have promised to start training on nothing."""

    edge: str
    share: str = "wait_input"


@dataclass(frozen=True)
class Send:
    """Put a message on an edge. Waits while its outbox is full, or for `wait_s`; answered with whether it was put."""

    edge: str
    message: Message
    wait_s: float | None = None


@dataclass(frozen=True)
class Pace:
    """Wait until the staleness bound allows to finish use `version`, or for `wait_s`; answered with whether it does."""

    edge: str
    version: int
    wait_s: float | None = None


@dataclass(frozen=True)
class HasStopped:
    """Answered with whether the consumer of an edge has said that it needs no further training message."""

    edge: str


@dataclass(frozen=True)
class HasEnded:
    """Answered with whether the last message of an edge has been received, as far as is known."""

    edge: str


@dataclass(frozen=True)
class AwaitStop:
    """Wait until the consumer of an edge has said that it needs no further training message."""

    edge: str


@dataclass(frozen=True)
class Stop:
    """Tell the producer of an edge that no further training message is needed."""

    edge: str


@dataclass(frozen=True)
class Rest:
    """Do nothing for a while."""

    seconds: float
    edge: str = "(paused)"


@dataclass(frozen=True)
class Close:
    """Nothing follows on an edge."""

    edge: str


Operation = Receive | ReceiveAny | Poll | Hear | Send | Pace | HasStopped | HasEnded | AwaitStop | Stop | Rest | Close
