"""What a block under replay asks for while it waits: driven by hand, with a block that computes nothing."""

import pytest

from actors.edges import BlockEdges, LateInput
from actors.messages import Flags, Kind, Message
from actors.operations import HasEnded, HasStopped, Poll, ReceiveAny, Send
from actors.replay_buffer import ReplayBuffer, ReplaySettings
from actors.replay_program import ReplayProgram
from actors.times import Times

EDGES = BlockEdges(driver="in", up="up", late=(LateInput("feedback", 1, 1),))


class Idle:
    """A block of which nothing is asked here."""

    version = 0

    def __init__(self):
        self.open = {}

    def evaluate(self, message):
        return {}, None

    def train(self, mode):
        pass


def started():
    program = ReplayProgram(
        Idle(), EDGES, Times(), ReplayBuffer(ReplaySettings(), draw=lambda n: 0),
        bound=lambda: None, num_batches=9, max_open=9, producer_version=int, promise=lambda version: None,
        snapshot=lambda position, orders: None, report=lambda evaluation: None, trained=lambda message: None,
    )  # fmt: skip
    return program.run()


def until(running, kind, answer=None, limit=20):
    """Answer looks with nothing and everything else with yes, from `answer` on, until a kind of operation comes."""
    operation = running.send(answer)
    for _ in range(limit):
        if isinstance(operation, kind):
            return operation
        operation = running.send(None if isinstance(operation, Poll) else not isinstance(operation, HasEnded))
    raise AssertionError(f"no {kind.__name__} within {limit} operations, the last is {operation}")


@pytest.mark.parametrize(
    ("kind", "flags"), [(Kind.EVALUATION, Flags.NONE), (Kind.ORDERS, Flags.SNAPSHOT), (Kind.END, Flags.NONE)]
)
def test_whatever_waits_to_be_passed_on_feedback_is_looked_for_meanwhile(kind, flags):
    """Else the next block, which waits for room for its feedback before it makes any here, waits for ever."""
    running = started()
    until(running, ReceiveAny)
    send = until(running, Send, ("in", Message(kind, 0, 0, flags)))
    assert (send.edge, send.message.kind) == ("up", kind)
    assert until(running, Poll, answer=False).edge == "feedback"
    assert until(running, Send).message is send.message, "and then it is tried again"


def test_a_block_whose_feedback_has_ended_trains_no_longer():
    """Its next block has had enough, so none of its passes will ever be complete."""
    running = started()
    assert until(running, HasEnded).edge == "feedback"
    assert isinstance(running.send(True), HasStopped), "it serves until the next block needs nothing more"
