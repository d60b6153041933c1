"""A block whose whole state is one number: a hash of everything that it has done, in order.

It stands in for a real block where only the protocol is of interest; two runs with the same final numbers have
handled the same messages in the same order, each once.
"""

import zlib
from types import SimpleNamespace

import torch

from actors.evaluation import Evaluation
from actors.learning_rule import Sent
from actors.messages import Flags
from actors.needs import Place


def mixed(*numbers):
    """Return a hash of numbers."""
    return zlib.crc32(repr(numbers).encode())


def number_of(tensor):
    """Return a hash of a tensor's bytes."""
    return zlib.crc32(tensor.contiguous().numpy().tobytes())


def as_tensor(number):
    return torch.tensor([number], dtype=torch.int64)


class HistoryBlock:
    """Has the methods of `Block` that programs and actors call."""

    def __init__(self, spec, shape):
        self.spec, self.place = spec, Place(spec.index, spec.num_blocks)
        self.version = self.updates = 0
        self.loss = None
        self.history = mixed(spec.index)
        self.trained = []
        self.open = {}
        self.finiteness, self.may_compile = SimpleNamespace(num_skipped=0), False
        self.started = lambda message: None
        """Told of every message that training starts on."""

    def forward(self, message, raw=None):
        self.started(message)
        self.open[message.batch_id] = number_of(message.tensors["h"])
        self.trained.append(message.batch_id)
        return as_tensor(mixed(self.history, self.open[message.batch_id]))

    def learn(self, message):
        """Without feedback, and in the last block, a batch is done at once."""
        if self.spec.edges.late:
            return Sent()
        return self._follow(message.batch_id, 0)

    def later(self, origin, message, batch_id):
        assert message.batch_id == batch_id, f"feedback for {message.batch_id}, expected {batch_id}"
        return self._follow(batch_id, int(message.tensors["gradient"][0]))

    def _follow(self, batch_id, credit):
        self.history = mixed(self.history, batch_id, self.open.pop(batch_id), credit)
        down = {origin: {"gradient": as_tensor(self.history)} for origin in self.spec.edges.down}
        return Sent(down=down, complete=True)

    def finish_use(self):
        self.version += 1

    def update(self, flags):
        self.updates += 1
        self.history = mixed(self.history, int(flags & Flags.LAST))

    def evaluate(self, message):
        up = as_tensor(mixed(self.history, number_of(message.tensors["h"])))
        tensors = {"h": up, "labels": message.tensors["labels"]}
        ended = bool(message.flags & Flags.SPLIT_END)
        sums = {"correct": float(mixed(self.history)), "num_samples": 1.0}
        return tensors, Evaluation(message.batch_id, message.split, sums) if ended else None

    def train(self, mode=True):
        """There is no mode."""

    def snapshot(self):
        return {
            "version": self.version, "updates": self.updates, "history": self.history,
            "trained": list(self.trained), "open": [[batch, number] for batch, number in self.open.items()],
        }  # fmt: skip

    def restore(self, state):
        self.version, self.updates, self.history = state["version"], state["updates"], state["history"]
        self.trained = list(state["trained"])
        self.open = dict(state["open"])

    def digests(self):
        return {"history": str(self.history)}

    def auxiliary_digests(self):
        return {}
