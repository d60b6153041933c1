"""`unlocked plan`: measures a run's blocks for some seconds, and says what it will be like before it takes devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.errors import UserError
from orchestrator.api import check_machine
from orchestrator.automatic_cuts import balanced_cuts, with_cuts
from orchestrator.balanced_cuts import balanced_starts
from orchestrator.chain_profile import ChainProfile
from orchestrator.config import RunConfig
from orchestrator.config.sections import ObjectiveSection, RuleSection, ScheduleSection, StalenessSection
from orchestrator.contention import slowdown
from orchestrator.forecast import Forecast, chain_of, cores_here, edge_facts, forecast, speedups, suggestion
from orchestrator.plan import Plan, make_plan
from orchestrator.plan_checks import start_up_checks
from orchestrator.profiling import measure
from orchestrator.run_directory import write_json
from orchestrator.simulated_device import Link
from orchestrator.simulated_timeline import timeline_of
from orchestrator.simulation import Machines

SECONDS = 4.0
"""Spent on timed batches of a run, and half as much on its opponent."""


@dataclass(frozen=True)
class Cluster:
    """A cluster to simulate; None of it exists.

    `speeds`: one per device, relative to this machine's core or GPU.
    """

    speeds: tuple[float, ...]
    link: Link = field(default_factory=Link)
    jitter: float = 0.0


def plan_run(
    config: RunConfig, cluster: Cluster | None = None, *, seconds: float = SECONDS,
    show: Callable[[str], None] = lambda text: None, timeline: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return all that is known of a run beforehand, as plain values; seconds, bytes, fractions of 1.

    Args:
        config: of the run.
        cluster: devices to simulate; None: predict a run on this machine.
        seconds: to spend on measuring blocks.
        show: told of the progress.
        timeline: file for a Chrome trace of what was simulated.

    Raises:
        UserError: the run can't be planned.
    """
    check_machine(config)
    config = _cut(config, cluster, show)
    plan = make_plan(config)
    chain_of(config, plan)
    profile = measure(config, seconds, show)
    show("profiling back-propagation through the same blocks")
    exact = measure(_backprop(config, plan), seconds / 2)
    machines = _machines(config, profile, cluster)
    show("predicting")
    made = forecast(config, plan, profile, machines)
    if timeline is not None:
        write_json(timeline, timeline_of(made.simulated.spans), indent=None)
    return _facts(config, plan, profile, exact, machines, made, is_simulated=cluster is not None)


def _cut(config: RunConfig, cluster: Cluster | None, show: Callable[[str], None]) -> RunConfig:
    """Resolve `network.blocks: auto`: one block per simulated device, in proportion to its speed, or as a run does."""
    network = config.network
    if cluster is None or network.blocks != "auto" or network.cuts is not None:
        return with_cuts(config, fresh=True, show=show)
    number = network.num_blocks or len(cluster.speeds)
    speeds = cluster.speeds if number == len(cluster.speeds) else [1.0] * number
    cuts = balanced_cuts(config, speeds, show)
    return config.model_copy(update={"network": network.model_copy(update={"cuts": cuts})})


def _backprop(config: RunConfig, plan: Plan) -> RunConfig:
    """The same network and cuts, trained by exact back-propagation: no auxiliary heads."""
    cuts = [block[0] for block in plan.blocks[1:]]
    return config.model_copy(
        update={
            "rule": RuleSection(name="backprop"),
            "objective": ObjectiveSection(name="cross_entropy"),
            "schedule": ScheduleSection(),
            "staleness": StalenessSection(),
            "network": config.network.model_copy(update={"blocks": None, "num_blocks": None, "cuts": cuts}),
            "optimizer": config.optimizer.model_copy(update={"blocks": {}}),
        }
    )


def _machines(config: RunConfig, profile: ChainProfile, cluster: Cluster | None) -> Machines:
    if cluster is None:
        cores = cores_here(config)
        return Machines(cores=cores, slowdown=slowdown(min(cores, len(profile.blocks))))
    return Machines(
        speeds=cluster.speeds,
        device_of=devices_of([block.busy_s for block in profile.blocks], cluster.speeds),
        link=cluster.link,
        jitter=cluster.jitter,
        seed=config.seed,
    )


def devices_of(times: Sequence[float], speeds: Sequence[float]) -> list[int]:
    """Return the device of every block: neighbours together, so that the busiest device has as little as can be.

    Raises:
        UserError: there are more devices than blocks.
    """
    if len(speeds) > len(times):
        raise UserError(
            f"--devices: got {len(speeds)} for {len(times)} blocks, expected at most one per block; use fewer devices, "
            f"or set network.blocks={len(speeds)}"
        )
    starts = balanced_starts(len(times), lambda a, b: sum(times[a:b]), speeds=speeds)
    return [sum(start <= index for start in starts) for index in range(len(times))]


def _facts(
    config: RunConfig, plan: Plan, profile: ChainProfile, exact: ChainProfile, machines: Machines, made: Forecast,
    *, is_simulated: bool,
) -> dict[str, Any]:  # fmt: skip
    simulated = made.simulated
    return {
        "schema": 1,
        "method": str(config.rule.name or config.rule.factory),
        "simulated": is_simulated,
        "devices": _devices(machines, simulated.busy),
        "profiled_batches": profile.num_batches,
        "batch_size": profile.batch_size,
        "load_s": profile.load.wall_s,
        "blocks": [
            _block_facts(profile, index, simulated.shares[index], machines) for index in range(len(profile.blocks))
        ],
        "edges": edge_facts(plan, profile, simulated),
        "predicted_samples_per_s": made.samples_per_s,
        "predicted_step_s": simulated.period_s,
        "bottleneck": made.bottleneck,
        "batches_in_flight": simulated.batches_in_flight,
        **speedups(exact, simulated.period_s, machines),
        "checks": start_up_checks(config, plan, profile, machines),
        "suggestion": suggestion(config, profile, made, machines),
    }


def _devices(machines: Machines, busy: Sequence[float]) -> dict[str, Any]:
    if machines.cores is not None:
        return {"cores": machines.cores, "busy_cores": busy[0], "slowdown": machines.slowdown}
    return {
        "speeds": list(machines.speeds), "of_blocks": list(machines.device_of), "busy": list(busy),
        "latency_s": machines.link.latency_s, "jitter": machines.jitter,
    }  # fmt: skip


def _block_facts(profile: ChainProfile, index: int, shares: Mapping[str, float], machines: Machines) -> dict[str, Any]:
    block = profile.blocks[index]
    step = {kind: work.wall_s * block.calls[kind] for kind, work in block.works.items()}
    return {
        "name": block.name,
        "layers": list(block.layers),
        "parameters": block.num_parameters,
        "head_parameters": block.num_head_parameters,
        "flops": block.flops,
        "step_s": block.busy_s,
        "cpu_s": block.cpu_s,
        "step_parts_s": step,
        "memory_bytes": {
            "parameters": block.parameter_bytes,
            "optimizer": block.optimizer_bytes,
            "activations": block.activation_bytes * block.open_batches,
            "all_with_gradients": block.memory_bytes,
        },
        "time_fraction": dict(shares),
    }
