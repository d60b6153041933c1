"""A task that is told to stop."""

import pytest

from actors.errors import RunError
from actors.operations import HasEnded, Poll
from actors.task import Task
from actors.times import Times
from actors.transport.in_process import InProcessPort
from actors.transport.inbox import Inbox
from actors.transport.outbox import Outbox

MOST = 50


@pytest.mark.parametrize("operation", [HasEnded("e"), Poll("e")])
def test_a_program_that_never_waits_stops_after_the_operation_that_it_is_at(operation):
    """A block works off a full queue otherwise, while all others wait for it to return to a checkpoint."""
    done = []

    def program():
        while len(done) < MOST:
            yield operation
            done.append(operation)

    inbox = Inbox("run", "e", InProcessPort(Outbox("run", "e", 4)))
    task = Task(program(), {"e": inbox}, {}, Times())
    with pytest.raises(RunError, match="stopped at edge e"):
        task.run(60.0, lambda: len(done) >= 3)
    assert len(done) == 3


def test_a_program_that_has_ended_is_not_stopped_any_more():
    def program():
        yield HasEnded("e")

    task = Task(program(), {"e": Inbox("run", "e", InProcessPort(Outbox("run", "e", 4)))}, {}, Times())
    task.run(60.0, lambda: task.is_done)
    assert task.is_done
