"""The orders of a source under `replay`, driven by hand."""

import pytest

from actors.edges import SourceEdges
from actors.messages import Flags
from actors.operations import HasStopped
from actors.replay_source import ReplaySource
from actors.snapshot_orders import SnapshotOrders
from actors.times import Times


class Batches:
    """Without end."""

    num_batches = 9

    def stream(self, start):
        while True:
            yield None


class Source(ReplaySource):
    def _message(self, *args):
        return None


@pytest.mark.parametrize(("num_sent", "expected"), [(3, [1, 2]), (4, [1, 3, 4])])
def test_the_last_snapshot_has_a_place_of_its_own(num_sent, expected):
    """At the place of the one before it, it would be taken for that: blocks train on meanwhile."""
    taken = []
    source = Source(
        Batches(), {}, SourceEdges(("up",)), Times(), evaluate_every=None, stop_asked=bool,
        snapshots=SnapshotOrders(2), snapshot=lambda position, orders: taken.append((position, orders)),
    )  # fmt: skip
    running, answer = source.run(), None
    with pytest.raises(StopIteration):
        while True:
            operation = running.send(answer)
            answer = isinstance(operation, HasStopped) and source.version == num_sent
    assert [position for position, _ in taken] == expected
    assert [bool(orders & Flags.LAST) for _, orders in taken] == [False] * (len(expected) - 1) + [True]
