"""A chain of blocks that notes what it sent and what every block followed, and can be taken over half-way."""

import copy
import json
from collections import defaultdict

import torch

from actors.block import Block
from actors.datasets.batches import TrainBatches
from actors.datasets.loading import load_data
from actors.messages import Flags, Kind, Message
from actors.program import BlockProgram, Send
from actors.state_tree import copied, flatten, unflatten
from actors.times import Times
from orchestrator.specs import data_spec
from tests.contract.plugin_chain import Chain, chain_config

CNN = {"name": "cnn", "channels": [6, 8, 8], "pool_after": [2], "dropout": 0.3, "blocks": 4}
"""Batch norm and dropout: whatever runs a second time shows."""


def cnn_config(**sections):
    data = {"name": "generated", "shape": [1, 6, 6], "classes": 4, "size": 256, "batch_size": 32}
    return chain_config(**{"data": data, "network": CNN, **sections})


class RecordedChain(Chain):
    """See above.

    `gradients[j][i]`: by name, what block j's body followed at its i-th update; `head_gradients[j][i]`
    likewise for its head, at the i-th batch. `sent[edge]`: every message in order. `most_open[j]`: batches that
    were open in block j at once. `restored_at[j]`: after which batch a new block took over from block j.
    """

    def __init__(self, config):
        super().__init__(config)
        self.batches = TrainBatches(load_data(data_spec(config)), data_spec(config), self.plan.num_epochs)
        self.gradients = [[] for _ in self.blocks]
        self.head_gradients = [[] for _ in self.blocks]
        self.most_open = [0 for _ in self.blocks]
        self.restored_at = [[] for _ in self.blocks]
        self.evaluated = [[] for _ in self.blocks]
        self.sent = defaultdict(list)
        self.orders = {}

    def _watch(self, index, block):
        super()._watch(index, block)

        def update(flags, update=block.update):
            self.gradients[index].append(gradients_of(block.body))
            update(flags)

        def learn(*arguments, learn=block.learn):
            sent = learn(*arguments)
            self.most_open[index] = max(self.most_open[index], len(block.open))
            return sent

        def step(group, *arguments, step=block._step):
            if group == "heads":
                self.head_gradients[index].append(gradients_of(block.objective))
            return step(group, *arguments)

        block.update, block.learn, block._step = update, learn, step

    def message(self, batch_id, is_last):
        message = super().message(batch_id, is_last)
        extra = self.orders.get(batch_id, Flags.NONE)
        return Message(message.kind, batch_id, batch_id, message.flags | extra, message.tensors)

    def take_over_after(self, batch_id):
        """At the position of this batch, every block is replaced by a new one made from its snapshot."""
        self.orders[batch_id] = Flags.SNAPSHOT

    def _program(self, j):
        def take_over(position, orders):
            fresh = Block(self.specs[j], self.plan.shapes[j])
            tensors, tree = flatten(self.blocks[j].snapshot())
            fresh.restore(unflatten(copied(tensors), json.loads(json.dumps(tree))))
            self._watch(j, fresh)
            program.block = self.blocks[j] = fresh
            self.restored_at[j].append((position, len(fresh.open)))

        program = BlockProgram(
            self.blocks[j], self.specs[j].edges, Times(),
            snapshot=take_over, report=self.evaluated[j].append, trained=lambda message, edge: None,
        )  # fmt: skip
        return self._listened(program.run())

    def _listened(self, program):
        answer = None
        while True:
            try:
                operation = program.send(answer)
            except StopIteration:
                return
            if isinstance(operation, Send):
                self.sent[operation.edge].append(operation.message)
            answer = yield operation

    def feedback(self):
        """The edges on which feedback was sent, with their numbers of messages."""
        kinds = {edge: {message.kind for message in messages} for edge, messages in self.sent.items()}
        return {edge: len(self.sent[edge]) for edge, found in kinds.items() if found == {Kind.FEEDBACK}}


def gradients_of(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def whole(gradients):
    """One vector of all gradients of an update."""
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class PlainTraining:
    """The same modules trained with autograd alone, each body following the losses that it is told to.

    `follow(j)`: the blocks whose losses body j follows, nearest first. Heads follow their own loss.
    """

    def __init__(self, config, follow):
        chain = Chain(config)
        self.batches, self.follow = chain.batches, follow
        self.bodies = [copy.deepcopy(block.body) for block in chain.blocks]
        self.objectives = [copy.deepcopy(block.objective) for block in chain.blocks]
        self.chain = chain
        optimizer = config.optimizer
        self.optimizers = [
            torch.optim.SGD(list(module.parameters()), lr=optimizer.lr, **optimizer.options)
            for module in [*self.bodies, *self.objectives]
            if module is not None and list(module.parameters())
        ]
        self.gradients = [[] for _ in self.bodies]

    def train(self, num_batches):
        for batch_id in range(num_batches):
            self.gradients_at(batch_id)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()

    def gradients_at(self, batch_id):
        batch, losses = self.batches.batch(batch_id), []
        h = batch.inputs
        for body, objective in zip(self.bodies, self.objectives, strict=True):
            h = body(h, batch_id)
            losses.append(None if objective is None else objective(h, batch))
        for j, (body, objective) in enumerate(zip(self.bodies, self.objectives, strict=True)):
            for origin in self.follow(j):
                add(body, losses[origin])
            if objective is not None:
                add(objective, losses[j])
            self.gradients[j].append(gradients_of(body))

    def digests(self):
        """As `Chain.digests`."""
        for block, body, objective in zip(self.chain.blocks, self.bodies, self.objectives, strict=True):
            block.body.load_named_state(body.named_state())
            if objective is not None:
                block.objective.load_state_dict(objective.state_dict())
        return self.chain.digests()


def add(module, loss):
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        return
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def assert_compiled_layers_follow_plain_ones(graphs, num_batches, at_least, **sections):
    """Train a chain as it is and with compiled layers, of which `graphs` get at least so many; gradients agree."""
    plain, compiled = (
        RecordedChain(cnn_config(**sections, training={"epochs": 1, "compile": compile})) for compile in (False, True)
    )
    plain.train(0, num_batches)
    assert not graphs
    compiled.train(0, num_batches)
    assert len(graphs) >= at_least
    for got, expected in zip(compiled.gradients, plain.gradients, strict=True):
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e, atol=1e-5, rtol=1e-4)
