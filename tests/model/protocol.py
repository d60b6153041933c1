"""A chain of actors under a scheduler that a test drives: who advances, who dies, when a checkpoint is committed."""

import itertools
from dataclasses import dataclass, field

from actors import block_actor
from actors.edge_ends import Life
from actors.host import Host
from actors.storage import open_storage
from actors.transport.in_process import InProcessPort
from orchestrator.checkpoints import Checkpoint, Checkpoints
from orchestrator.commits import Commits
from orchestrator.ledger import edge_ledger
from orchestrator.plan import make_plan
from orchestrator.specs import Birth, block_spec, source_spec
from orchestrator.wiring import SOURCE
from tests.model.history_block import HistoryBlock
from tests.runs import Replacing, config_of

BATCHES = 12
SETTINGS = {
    "data": Replacing(
        name="generated", shape=[1, 3, 3], classes=3, size=BATCHES * 2, test_size=4, batch_size=2,
    ),
    "network": Replacing(name="mlp", widths=[4, 4], blocks=3),
    "training": {"epochs": 1},
    "evaluation": {"every_batches": 5, "batch_size": 2},
    "buffers": {"capacity": 2},
    "recovery": {"mode": "local"},
}  # fmt: skip


@dataclass
class Chain:
    """Actors in this process, each advanced by one operation at a time.

    `late`: whether blocks wait for feedback, with delays, or learn from their own losses.
    """

    folder: str
    late: bool
    every: int = 3
    hosts: dict = field(default_factory=dict)
    ports: dict = field(default_factory=dict)
    done: set = field(default_factory=set)
    committed: list = field(default_factory=list)

    def __post_init__(self):
        rule = {"rule": {"name": "backprop"}, "schedule": {"delay_per_hop": 1}} if self.late else {}
        settings = {**SETTINGS, **rule, "checkpoint": {"every_batches": self.every}}
        self.config = config_of(self.folder, **settings)
        self.plan = make_plan(self.config)
        self.storage = open_storage(f"memory://{self.folder}")
        self.lives = itertools.count()
        self.names = [SOURCE, *(f"block{index}" for index in range(len(self.plan.blocks)))]
        self.commits = Commits(Checkpoints(self.storage, "run"), keep=2, every_s=None, clock=lambda: 0.0)
        for name in self.names:
            self._begin(name, None)
        for name in self.names:
            self._join(name)

    # ------------------------------------------------------------------ what a test does

    def step(self, name):
        """Let an actor perform one operation; return whether it could."""
        task = self.hosts[name].actor.task
        if name in self.done or not task.advance(0.0):
            return False
        if task.is_done:
            self.done.add(name)
        return True

    def crash(self, name):
        """Let an actor's process die and another life begin at the newest checkpoint."""
        for edge in self.plan.wiring.edges:
            if edge.producer == name:
                self.ports[edge.name].is_cut = True
        self.done.discard(name)
        self._begin(name, self.commits.newest)
        self._join(name)

    def commit(self):
        """Let the orchestrator read reports and commit what is complete."""
        blocks = [self.hosts[name].actor.report() for name in self.names[1:]]
        self.committed += [c.position for c in self.commits.note(self.hosts[SOURCE].actor.report(), blocks)]

    def tell(self, name):
        """Let an actor hear of the newest checkpoint."""
        self.hosts[name].actor.order("commit", {"position": self.commits.position})

    def run_to_the_end(self):
        """Advance all by turns until nothing is left to do."""
        idle = 0
        while len(self.done) < len(self.names):
            moved = sum(self.step(name) for name in self.names)
            self.commit()
            for name in self.names:
                self.tell(name)
            idle = 0 if moved else idle + 1
            assert idle < 3, {name: host.actor.task.waiting_on for name, host in self.hosts.items()}

    # ------------------------------------------------------------------ what must hold

    def outcome(self):
        """Return each block's history, and what it has evaluated."""
        actors = [self.hosts[name].actor for name in self.names[1:]]
        return [(a.block.history, a.block.version, [vars(e) | {"at_s": 0} for e in a.evaluations]) for a in actors]

    def trained(self):
        """Return the batches that each block has trained on in the history that led to its state."""
        return [self.hosts[name].actor.block.trained for name in self.names[1:]]

    def most_kept(self):
        """Return the most messages that an edge keeps."""
        outboxes = [box for host in self.hosts.values() for box in host.actor.outboxes.values()]
        return max(len(box._kept) for box in outboxes)

    def imbalances(self):
        """Return what does not add up at the end."""
        reports = {name: host.actor.report() for name, host in self.hosts.items()}
        found = []
        for edge in self.plan.wiring.edges:
            sent, got = reports[edge.producer]["sends"], reports[edge.consumer]["receives"]
            if wrong := edge_ledger(sent[edge.name], got[edge.name]).imbalance(edge.name):
                found.append(wrong)
        return found

    # ------------------------------------------------------------------ lives

    def _begin(self, name, checkpoint: Checkpoint | None):
        number = next(self.lives)
        birth = Birth(Life(number, repeats=name in self.hosts), checkpoint=checkpoint)
        self.hosts[name] = Host()
        if name == SOURCE:
            self.hosts[name].assign(source_spec(self.config, self.plan, "run", birth))
            return
        index = self.names.index(name) - 1
        spec = block_spec(self.config, self.plan, index, "run", self.storage.address, birth)
        real, block_actor.Block = block_actor.Block, HistoryBlock
        try:
            self.hosts[name].assign(spec, self.plan.shapes[index])
        finally:
            block_actor.Block = real

    def _join(self, name):
        edges = [edge for edge in self.plan.wiring.edges if name in (edge.producer, edge.consumer)]
        self.hosts[name].connect({edge.name: None for edge in edges if edge.consumer == name})
        for edge in edges:
            port = self.ports[edge.name] = InProcessPort(self.hosts[edge.producer].actor.outboxes[edge.name])
            self.hosts[edge.consumer].connect({edge.name: port})
        self.hosts[name].actor.start()
