"""The actors of a run: which of them share a process, how they begin, and how a lost one begins again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from actors.edge_ends import Life
from actors.storage import Storage
from orchestrator.checkpoints import Checkpoint
from orchestrator.cluster.contract import Assignment, Cluster, Request
from orchestrator.config import RunConfig
from orchestrator.config.sharing import blocks_of_actors, gpu_of, shared_place
from orchestrator.lease import LIVES
from orchestrator.plan import Plan
from orchestrator.run_directory import RunDirectory
from orchestrator.specs import Birth, block_spec, edge_settings, is_unordered, source_spec
from orchestrator.wiring import SOURCE, block_name

SOURCE_CPUS = 0.01


class Crew:
    """Starts the actors of one run on a cluster, and replaces them.

    Args:
        config: the resolved config; may be set anew when `control` has changed it.
        plan: what the run is made of.
        directory: where it is written.
        cluster: where the actors run.
        storage: where snapshots are written.
        epoch: of the lease; incarnations of a later one are higher.
    """

    def __init__(
        self, config: RunConfig, plan: Plan, directory: RunDirectory, cluster: Cluster, storage: Storage, epoch: int
    ) -> None:
        self.config, self.plan, self.directory, self.cluster = config, plan, directory, cluster
        self.storage, self.epoch = storage, epoch
        self.blocks = [block_name(index) for index in range(len(plan.blocks))]
        self.names = [SOURCE, *self.blocks]
        self._shared = blocks_of_actors(config.placement, len(self.blocks))
        self.restarts: Counter[str] = Counter()
        self.start_from: Checkpoint | None = None
        self.goes_on = False
        self._births: Counter[str] = Counter()

    def start(self, checkpoint: Checkpoint | None, *, goes_on: bool = False) -> None:
        """Start all actors from a checkpoint, or from the beginning, and connect them.

        Raises:
            UserError: the cluster can't place them, or an actor refused its settings.
        """
        self.start_from, self.goes_on = checkpoint, goes_on
        requests = [Request((SOURCE,), SOURCE_CPUS, num_takes=self._num_takes(SOURCE))]
        requests += [self._request(indices) for indices in self._shared]
        self.cluster.start(requests, self.config.recovery.spares)
        self.cluster.check(self.directory.path)
        self.cluster.assign({name: self._assignment(name, checkpoint) for name in self.names})
        self.cluster.connect(self.plan.wiring.edges)

    def together(self, name: str) -> list[str]:
        """Return the actors that share a process with this one, it among them."""
        if name == SOURCE:
            return [SOURCE]
        return [self.blocks[index] for index in self._beside(self.blocks.index(name))]

    def _beside(self, index: int) -> range:
        """The blocks of a block's process."""
        return next(indices for indices in self._shared if index in indices)

    def replace(
        self, lost: Collection[str], checkpoint: Checkpoint | None, last_batch: int | None = None, first_new: int = 0
    ) -> None:
        """Begin to put other lives of lost actors in their places; the last two are of the source, as in `Birth`."""
        self.restarts.update(lost)
        self.cluster.replace({name: self._assignment(name, checkpoint, last_batch, first_new) for name in lost})

    def return_all(self, lost: Collection[str], checkpoint: Checkpoint | None) -> None:
        """Let every actor return to a checkpoint; the processes of those that are not lost stay."""
        self.restarts.update(lost)
        well = [name for name in self.names if name not in lost]
        self.cluster.replace({name: self._assignment(name, checkpoint) for name in self.names}, well)

    def _assignment(
        self, name: str, checkpoint: Checkpoint | None, last_batch: int | None = None, first_new: int = 0
    ) -> Assignment:
        run, config = self.directory.run_id, self.config
        checkpoint = checkpoint or self.start_from
        birth = Birth(
            life=Life(
                incarnation=self.epoch * LIVES + self._births[name],
                repeats=self._births[name] > 0,
                is_lossy=is_unordered(config),
            ),
            num_restarts=self.restarts[name],
            checkpoint=checkpoint,
            goes_on=self.goes_on and checkpoint is self.start_from,
            last_batch=last_batch,
            first_new=first_new,
        )
        self._births[name] += 1
        if name == SOURCE:
            return Assignment(source_spec(config, self.plan, run, birth))
        index = self.blocks.index(name)
        mark = str(self.directory.step_mark(name)) if config.placement.backend == "ray" else None
        gpu = gpu_of(config.placement, self._beside(index), index)
        spec = block_spec(config, self.plan, index, run, self.storage.address, birth, mark, gpu)
        return Assignment(spec, self.plan.shapes[index])

    def _num_takes(self, name: str) -> int:
        outgoing = [edge for edge in self.plan.wiring.edges if edge.producer == name]
        return edge_settings(self.config, self.plan.wiring).window * len(outgoing)

    def _request(self, indices: Sequence[int]) -> Request:
        names = tuple(self.blocks[index] for index in indices)
        auto = self.cluster.cpus_for(len(self.blocks), SOURCE_CPUS)
        place = shared_place(self.config.placement, indices, auto)
        num_takes = sum(self._num_takes(name) for name in names)
        return Request(
            names, float(place.cpus), place.gpus, num_takes, place.accelerator_type, place.labels, place.resources
        )
