"""What the command line and other programs call: train, evaluate, export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.errors import UserError
from orchestrator.catalog import find_catalog
from orchestrator.cluster.contract import Cluster
from orchestrator.config import RunConfig, config_from_mapping
from orchestrator.network_file import evaluate, export
from orchestrator.orchestrator import Orchestrator
from orchestrator.plan import make_plan
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
        UserError: the config or the data can't be used.
        RunError: an actor failed.
    """
    if not isinstance(config, RunConfig):
        config = config_from_mapping(config, find_catalog())
    check_machine(config)
    plan = make_plan(config)
    directory = RunDirectory.create(config, fresh=fresh)
    if directory.is_finished:
        return Summary(**directory.read_summary())
    cluster = cluster or open_cluster(config)
    orchestrator = Orchestrator(config, plan, directory, cluster, progress=progress)
    try:
        return orchestrator.run()
    except UserError:
        if not orchestrator.has_launched:
            directory.discard()
        raise
    finally:
        cluster.close()


def open_cluster(config: RunConfig) -> Cluster:
    """Return the cluster that `placement.backend` names."""
    if config.placement.backend == "in_process":
        from orchestrator.cluster.in_process import InProcessCluster

        return InProcessCluster()
    from orchestrator.cluster.ray_cluster import RayCluster

    return RayCluster(strategy=config.placement.strategy, object_store_bytes=config.placement.object_store_bytes)


def check_machine(config: RunConfig) -> None:
    """Refuse what this machine lacks before anything starts.

    Raises:
        UserError: `network.weights` is no file.
    """
    weights = config.network.weights
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"network.weights: {weights} is no file; give the path of a .safetensors file")


__all__ = ["evaluate", "export", "open_cluster", "train"]
