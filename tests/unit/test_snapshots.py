"""Which snapshots are left out while a slow storage writes those before."""

import threading

from actors.fail_points import NO_FAIL_POINTS
from actors.snapshots import LONGEST_QUEUE, Snapshots

DEADLINE_S = 20.0


class SlowStorage:
    """Writes nothing before it is opened."""

    address = "slow"

    def __init__(self):
        self.opened, self.began = threading.Event(), threading.Event()

    def write(self, name, data, points=NO_FAIL_POINTS):
        self.began.set()
        assert self.opened.wait(DEADLINE_S)


def test_a_slow_storage_leaves_out_snapshots_but_never_the_one_that_ends_the_training():
    storage = SlowStorage()
    snapshots = Snapshots(storage, "block0", ".1", NO_FAIL_POINTS, in_background=True)
    for position in range(LONGEST_QUEUE + 1):
        snapshots.take(position, {})
    assert storage.began.wait(DEADLINE_S)
    assert list(snapshots.errors) == [LONGEST_QUEUE]
    snapshots.take(9, {}, is_last=True)
    storage.opened.set()
    snapshots.wait(DEADLINE_S)
    assert sorted(snapshots.files) == [*range(LONGEST_QUEUE), 9] and list(snapshots.errors) == [LONGEST_QUEUE]
