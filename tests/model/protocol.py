"""A chain of actors under a scheduler that a test drives: who advances, dies or hangs, and when checkpoints come."""

import functools
import itertools
from dataclasses import dataclass, field

from actors import block_actor
from actors.edge_ends import Life
from actors.errors import EdgeError, MispairedMessage
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
    "buffers": {"capacity": 4},
    "staleness": {"max": 2},
    "recovery": {"mode": "local"},
}  # fmt: skip
EVERY = 3
"""Batches between snapshots."""
MOST_ROUNDS = 1000
"""Operations in which any actor comes to its end."""


class Violation(AssertionError):
    """Something that must hold at any time does not."""


@functools.cache
def planned(late):
    """The config of a chain and its plan."""
    rule = {"rule": {"name": "backprop"}, "schedule": {"delay_per_hop": 1}} if late else {}
    config = config_of("model", **SETTINGS, **rule, checkpoint={"every_batches": EVERY})
    return config, make_plan(config)


@dataclass
class Chain:
    """Actors in this process, each advanced by one operation at a time.

    `late`: whether blocks wait for feedback, with delays, or learn from their own losses.
    """

    folder: str
    late: bool
    hosts: dict = field(default_factory=dict)
    ports: dict = field(default_factory=dict)
    done: set = field(default_factory=set)
    committed: list = field(default_factory=list)
    zombies: list = field(default_factory=list)
    """Earlier lives that still run."""
    num_operations: int = 0
    is_broken: bool = False
    starts: set = field(default_factory=set)
    """Every (block, sequence number) that training has started on at least once."""

    def __post_init__(self):
        self.config, self.plan = planned(self.late)
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
        """Let an actor perform one operation; return whether it could.

        Raises:
            Violation: it failed, or put more on an edge than may wait there.
        """
        actor = self.hosts[name].actor
        before = {box: box.num_sent for box in actor.outboxes.values()}
        try:
            if name in self.done or not actor.task.advance(0.0):
                return False
        except (EdgeError, MispairedMessage, AssertionError) as error:
            raise self._violated(f"{name} failed: {error}") from error
        self.num_operations += 1
        for box, num_sent in before.items():
            waiting = box.num_sent - 1 - box.received
            if box.num_sent > num_sent and waiting > box.capacity:
                raise self._violated(f"edge {box.edge}: {waiting} messages wait, expected {box.capacity}")
        if actor.task.is_done:
            self.done.add(name)
        return True

    def step_zombies(self):
        """Let every earlier life that still runs perform one operation; whoever is refused has ended."""
        for zombie in list(self.zombies):
            try:
                moved = zombie.actor.task.advance(0.0)
            except EdgeError:
                self.zombies.remove(zombie)
                continue
            self.num_operations += moved
            if zombie.actor.task.is_done:
                self.zombies.remove(zombie)

    def crash(self, name):
        """Let an actor's process die and another life begin at the newest checkpoint."""
        for edge in self.plan.wiring.edges:
            if edge.producer == name:
                self.ports[edge.name].is_cut = True
        self._replace(name)

    def hang(self, name):
        """Let another life of an actor begin while the one before goes on with all its lines."""
        if name not in self.done:
            self.zombies.append(self.hosts[name])
        self._replace(name)

    def return_all(self):
        """Let every actor return to the newest checkpoint, as `recovery.mode: global` does."""
        for port in self.ports.values():
            port.is_cut = True
        self.commits.forget_uncommitted()
        self.done.clear()
        for name in self.names:
            self._begin(name, self.commits.newest)
        for name in self.names:
            self._join(name)

    def _replace(self, name):
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
        for _ in range(MOST_ROUNDS):
            if len(self.done) == len(self.names):
                return
            moved = sum(self.step(name) for name in self.names)
            self.commit()
            for name in self.names:
                self.tell(name)
            idle = 0 if moved else idle + 1
            if idle == 3:
                break
        raise self._violated(f"stuck at {[host.actor.task.waiting_on for host in self.hosts.values()]}")

    # ------------------------------------------------------------------ what must hold

    def outcome(self):
        """Return each block's history, and what it has evaluated."""
        actors = [self.hosts[name].actor for name in self.names[1:]]
        return [(a.block.history, a.block.version, [vars(e) | {"at_s": 0} for e in a.evaluations]) for a in actors]

    def trained(self):
        """Return the batches that each block has trained on in the history that led to its state."""
        return [self.hosts[name].actor.block.trained for name in self.names[1:]]

    def _started(self, name, message):
        """No message is first trained on when its producer is further ahead than the staleness bound allows."""
        index = self.names.index(name) - 1
        if index == 0 or (name, message.sequence) in self.starts:
            return  # from the source there is no bound; a restored block repeats what it has trained on
        self.starts.add((name, message.sequence))
        staleness = self.hosts[self.names[index]].actor.block.version - 1 - message.version
        if staleness > self.config.staleness.max:
            raise self._violated(f"{name}: batch {message.batch_id} is {staleness} versions old")

    def _violated(self, text):
        self.is_broken = True
        return Violation(text)

    def check_balance(self):
        """Raise if a message is in no state, or in two."""
        if wrong := self.imbalances():
            raise self._violated(wrong[0])

    def imbalances(self):
        """Return what does not add up between two operations."""
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
        self.hosts[name].actor.block.started = functools.partial(self._started, name)

    def _join(self, name):
        edges = [edge for edge in self.plan.wiring.edges if name in (edge.producer, edge.consumer)]
        self.hosts[name].connect({edge.name: None for edge in edges if edge.consumer == name})
        for edge in edges:
            port = self.ports[edge.name] = InProcessPort(self.hosts[edge.producer].actor.outboxes[edge.name])
            self.hosts[edge.consumer].connect({edge.name: port})
        self.hosts[name].actor.start()
