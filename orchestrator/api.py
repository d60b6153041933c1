"""What the command line and other programs call: train, evaluate, export."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.errors import UserError
from actors.storage import open_storage
from orchestrator.automatic_cuts import with_cuts
from orchestrator.catalog import find_catalog
from orchestrator.checkpoints import Checkpoints
from orchestrator.cluster.contract import Cluster
from orchestrator.config import RunConfig, config_from_mapping, plain_values
from orchestrator.config.credentials import refuse_redacted
from orchestrator.config.sharing import check_sharing
from orchestrator.kept_changes import forget_overruled, with_changes
from orchestrator.lease import Lease
from orchestrator.network_file import evaluate, export
from orchestrator.orchestrator import Orchestrator
from orchestrator.plan import Plan, make_plan
from orchestrator.recut import recut, recut_refusal
from orchestrator.run_directory import RunDirectory
from orchestrator.summary import Summary


def train(
    config: RunConfig | Mapping[str, Any],
    *,
    fresh: bool = False,
    progress: bool = True,
    cluster: Cluster | None = None,
) -> Summary:
    """Train one run to its end and return its summary.

    Args:
        config: a validated config, or a mapping in the form of the YAML files.
        fresh: start anew where the run directory holds an earlier run.
        progress: show live progress on standard error.
        cluster: where the actors run; default: what `placement` says. Closed at the end.

    Raises:
        UserError: the config or the data can't be used, or credentials are missing in the config.
        RunError: an actor failed.
    """
    if not isinstance(config, RunConfig):
        config = config_from_mapping(config, find_catalog())
    refuse_redacted(plain_values(config))
    say = Console(stderr=True, quiet=not progress, highlight=False).print
    if not fresh:
        config, changes = with_changes(config, find_catalog())
        if changes:
            say(f"going on with {', '.join(changes)}, as control has set")
    check_machine(config)
    config = with_cuts(config, fresh=fresh, show=say)
    plan = make_plan(config)
    check_sharing(config, len(plan.blocks))  # again, since automatic cuts have come after the config's own checks
    directory = RunDirectory.create(config, fresh=fresh, recut_refusal=recut_refusal(config))
    if directory.is_finished and not fresh:
        if directory.read_summary()["epochs"] >= plan.num_epochs:
            return Summary(**directory.read_summary())
        if plan.phase_batches is not None:
            raise UserError(
                f"training.epochs: got {config.training.epochs}, but {directory.path} was trained block after block to "
                f"its end, and each block would need the epochs at its turn; choose another run_dir"
            )
    lease = Lease(directory.lease_json, say)
    lease.acquire()
    is_new = fresh or lease.epoch == 1
    try:
        if fresh:
            directory.begin(config)
        elif plan.phase_batches is not None:
            _check_turns(config, plan, directory)
        _recut(config, plan, directory, lease)
        directory.keep(config)
        with suppress(OSError):  # a full disk: the run goes on, and its next job finds more than is true
            forget_overruled(directory, config)
        return _train(config, plan, directory, lease, is_new=is_new, progress=progress, cluster=cluster)
    finally:
        lease.release()


def _check_turns(config: RunConfig, plan: Plan, directory: RunDirectory) -> None:
    """Refuse more epochs for a run of one block after another that is past block 0's turn.

    Raises:
        UserError: the run goes on from a batch of another block.
    """
    held_epochs = directory.held_epochs()
    if held_epochs == config.training.epochs:
        return  # verifying a checkpoint reads all of it
    found = _checkpoints(config, plan, directory).resume_point(is_finished=False).checkpoint
    if found is not None and found.position >= held_epochs * plan.batches_per_epoch:
        raise UserError(
            f"training.epochs: got {config.training.epochs}, but {directory.path} goes on from batch "
            f"{found.position + 1}, past the turn of block 0 with {held_epochs} epochs, and each block would need the "
            f"epochs at its turn; set training.epochs={held_epochs} or choose another run_dir"
        )


def _checkpoints(config: RunConfig, plan: Plan, directory: RunDirectory) -> Checkpoints:
    storage = open_storage(directory.checkpoint_address(config.checkpoint.uri))
    return Checkpoints(storage, directory.run_id, cut=plan.blocks)


def _recut(config: RunConfig, plan: Plan, directory: RunDirectory, lease: Lease) -> None:
    """Put the checkpoint that the run goes on from together anew, if it was cut into other blocks."""
    checkpoints = _checkpoints(config, plan, directory)
    if not any(checkpoint.is_cut_otherwise(plan.blocks) for checkpoint in checkpoints.all()[0]):
        return  # verifying one reads all of it
    found = checkpoints.resume_point(is_finished=directory.is_finished).checkpoint
    if found is not None and found.is_cut_otherwise(plan.blocks):
        recut(config, plan, checkpoints, found, lease.epoch)


def _train(
    config: RunConfig, plan: Plan, directory: RunDirectory, lease: Lease, *,
    is_new: bool, progress: bool, cluster: Cluster | None,
) -> Summary:  # fmt: skip
    cluster = cluster or open_cluster(config)
    try:
        orchestrator = Orchestrator(config, plan, directory, cluster, lease, progress=progress)
        try:
            return orchestrator.run()
        except UserError:
            if is_new and not orchestrator.has_launched:
                directory.discard()
            raise
    finally:
        cluster.close()


def resume(run: str | Path, *, progress: bool = True, cluster: Cluster | None = None) -> Summary:
    """Go on with a run from its newest checkpoint that verifies, as the same `train` command would.

    Raises:
        UserError, RunError: as `train`; UserError also if `run` is no run directory.
    """
    directory = RunDirectory.open(run)
    config = directory.config(find_catalog())
    here = config.model_copy(update={"run_dir": str(directory.path)})
    return train(here, progress=progress, cluster=cluster)


@dataclass(frozen=True)
class Verified:
    """What `verify` has found.

    `lines`: one per checkpoint or damage. `usable`: the position that a resumed run goes on from, None: none.
    `outcome`: what resuming would do.
    """

    lines: list[str]
    usable: int | None
    outcome: str


def verify(run: str | Path) -> Verified:
    """Read every shard of a run's checkpoints and compare it with its manifest.

    Raises:
        UserError: `run` is no run directory.
    """
    directory = RunDirectory.open(run)
    config = directory.config(find_catalog())
    checkpoints = Checkpoints(open_storage(directory.checkpoint_address(config.checkpoint.uri)), directory.run_id)
    committed, lines = checkpoints.all()
    for checkpoint in committed:
        damage = checkpoint.damage()
        state = "damaged" if damage else "good"
        lines.append(f"checkpoint at batch {checkpoint.position}: {state}, {len(checkpoint.shards)} shards")
        lines += damage
    lines += [checkpoints.no_manifest(folder) for folder in checkpoints.uncommitted()]
    try:
        found = checkpoints.resume_point(is_finished=directory.is_finished).checkpoint
    except UserError as refusal:
        return Verified(lines, None, str(refusal))
    if found is None:
        where = checkpoints.storage.address
        return Verified(lines, None, f"{where}: no checkpoint to go on from; a resumed run begins at its first batch")
    resumed = "the run is finished, and with more epochs it" if directory.is_finished else "a resumed run"
    return Verified(lines, found.position, f"{resumed} goes on from the checkpoint at batch {found.position}")


def open_cluster(config: RunConfig) -> Cluster:
    """Return the cluster that `placement.backend` names."""
    if config.placement.backend == "in_process":
        from orchestrator.cluster.in_process import InProcessCluster

        return InProcessCluster()
    from orchestrator.cluster.ray_cluster import RayCluster

    placement = config.placement
    return RayCluster(
        strategy=placement.strategy, object_store_bytes=placement.object_store_bytes, wait_s=placement.wait_s,
        deadline_s=placement.deadline_s, is_direct=placement.device_transport == "rdt",
    )  # fmt: skip


def check_machine(config: RunConfig) -> None:
    """Refuse what this machine lacks before anything starts.

    Raises:
        UserError: `network.weights` is no file.
    """
    weights = config.network.weights
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"network.weights: {weights} is no file; give the path of a .safetensors file")


__all__ = ["evaluate", "export", "open_cluster", "resume", "train", "verify"]
