"""A chain of blocks in this process: real blocks, real programs, real wiring, queues in place of edges."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from pathlib import Path

import torch

from actors.block import Block
from actors.datasets.batches import TrainBatches
from actors.datasets.loading import load_data
from actors.messages import Flags, Kind, Message
from actors.operations import Close, Receive, Send
from actors.program import BlockProgram
from actors.state_tree import copied, flatten, unflatten
from actors.times import Times
from orchestrator.catalog import find_catalog
from orchestrator.config import config_from_mapping
from orchestrator.plan import make_plan
from orchestrator.specs import block_spec, data_spec

BATCHES = 24


def chain_config(blocks=3, **sections):
    """A toy task that every rule must get better at: four classes, four layers."""
    return config_from_mapping(
        {
            "seed": 5,
            "data": {"name": "generated", "shape": [1, 6, 6], "classes": 4, "size": 256, "batch_size": 32},
            "network": {"name": "mlp", "widths": [24, 24, 24], "batch_norm": True, "blocks": blocks},
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
            "training": {"epochs": BATCHES // 8},
            "placement": {"backend": "in_process"},
            **sections,
        },
        find_catalog(),
    )


class Chain:
    """The blocks of a config, and what they did.

    `losses[j]`: block j's loss after each update; `finite`: whether every gradient at an update was finite.
    """

    def __init__(self, config):
        self.config, self.plan = config, make_plan(config)
        self.specs = [block_spec(config, self.plan, j, "test", Path("unused")) for j in range(len(self.plan.blocks))]
        self.blocks = [Block(spec, shape) for spec, shape in zip(self.specs, self.plan.shapes, strict=True)]
        self.batches = TrainBatches(load_data(data_spec(config)), data_spec(config), config.training.epochs)
        self.losses = [[] for _ in self.blocks]
        self.finite = True
        for index, block in enumerate(self.blocks):
            self._watch(index, block)

    def _watch(self, index, block):
        def update(flags, update=block.update):
            gradients = [p.grad for m in (block.body, block.rule, block.objective) if m for p in m.parameters()]
            self.finite &= all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)
            if block.loss is not None:
                self.losses[index].append(float(block.loss))
            update(flags)

        block.update = update

    def train(self, first, last):
        """Train on batches first, ..., last - 1 and handle everything outstanding; returns the sent edges."""
        queues = defaultdict(deque)
        for edge in (*self.plan.wiring.source.up, *self.plan.wiring.source.raw):
            for batch_id in range(first, last):
                queues[edge].append(self.message(batch_id, batch_id == last - 1))
            queues[edge].append(Message(Kind.END, last))
        running = {j: self._program(j) for j in range(len(self.blocks))}
        waiting = {j: next(program) for j, program in running.items()}
        used = set()
        while running:
            moved = False
            for j in list(running):
                while j in running and self._ready(waiting[j], queues):
                    moved = True
                    used |= {waiting[j].edge} if isinstance(waiting[j], Send) else set()
                    self._step(j, running, waiting, queues)
            assert moved, f"nothing can advance: {waiting}"
        return used

    def message(self, batch_id, is_last):
        batch = self.batches.batch(batch_id)
        tensors = {"h": batch.inputs, "labels": batch.labels}
        return Message(Kind.ACTIVATION, batch_id, batch_id, Flags.LAST if is_last else Flags.NONE, tensors)

    def _program(self, j):
        return BlockProgram(
            self.blocks[j], self.specs[j].edges, Times(),
            snapshot=lambda position, orders: None, report=lambda sums: None, trained=lambda message, edge: None,
        ).run()  # fmt: skip

    @staticmethod
    def _ready(operation, queues):
        return not isinstance(operation, Receive) or bool(queues[operation.edge])

    @staticmethod
    def _step(j, running, waiting, queues):
        operation, answer = waiting[j], None
        if isinstance(operation, Receive):
            answer = queues[operation.edge].popleft()
        elif isinstance(operation, Send):
            queues[operation.edge].append(operation.message)
        else:
            assert isinstance(operation, Close)
        try:
            waiting[j] = running[j].send(answer)
        except StopIteration:
            del running[j]

    def digests(self):
        return [(block.digests(), block.auxiliary_digests()) for block in self.blocks]

    def restore_from(self, other):
        """Take over another chain's snapshots, by way of what a file can hold."""
        for block, source in zip(self.blocks, other.blocks, strict=True):
            tensors, tree = flatten(source.snapshot())
            block.restore(unflatten(copied(tensors), json.loads(json.dumps(tree))))
