"""A rule that makes its block's books wrong on purpose: one message is no longer accounted for."""

import gc

from actors.rules.local import Local
from actors.task import Task

LOST_AT = 5


class Mislaying(Local):
    """Local learning; at one use it takes a message off the account of the program that runs it."""

    def now(self, p, credit):
        if p.batch.batch_id == LOST_AT and self.place.index == 1:
            for task in gc.get_objects():
                if isinstance(task, Task) and "block0->block1" in task.inboxes and not task.is_done:
                    task.handled["block0->block1"] -= 1
        return super().now(p, credit)
