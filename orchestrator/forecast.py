"""What a run will be like, from what its blocks were measured to cost: speed, bottleneck, staleness, speed-ups."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.errors import UserError
from actors.spec import PluginSpec
from orchestrator.chain_profile import ChainProfile
from orchestrator.config import RunConfig
from orchestrator.plan import Plan
from orchestrator.simulation import Chain, Machines, Simulated, Simulation
from orchestrator.specs import edge_settings, is_unordered
from orchestrator.wiring import block_name

FEWEST_BATCHES = 64
MICRO_BATCHES = (4, 8, 16)


@dataclass(frozen=True)
class Forecast:
    """What came out of the simulation of a run.

    `simulated`: times, shares and staleness.
    `samples_per_s`: in the steady state of training.
    `bottleneck`: who is busiest, and with what.
    """

    simulated: Simulated
    samples_per_s: float
    bottleneck: str


def chain_of(config: RunConfig, plan: Plan) -> Chain:
    """Return what of a run the simulation needs.

    Raises:
        UserError: the run's times do not follow from its costs.
    """
    if is_unordered(config) or config.schedule.name == "sequential":
        what = "feedback 'as_it_arrives'" if config.schedule.feedback == "as_it_arrives" else config.schedule.name
        raise UserError(
            f"schedule.name: got {what}, expected pipeline or lockstep with fixed feedback, whose times follow from "
            f"what each block costs; plan it as schedule.name=pipeline"
        )
    return Chain(
        wiring=plan.wiring,
        needs=plan.needs,
        rule=PluginSpec(config.rule.name, config.rule.factory, config.rule.options),
        objective=PluginSpec(config.objective.name, config.objective.factory, config.objective.options),
        settings=edge_settings(config, plan.wiring),
        late=config.schedule.late or "stash",
        accumulate=config.training.accumulate,
        bound=config.staleness.max,
    )


def cores_here(config: RunConfig) -> int:
    """Return the cores that a run on this machine shares; in one process, its actors take turns."""
    return 1 if config.placement.backend == "in_process" else len(os.sched_getaffinity(0))


def forecast(config: RunConfig, plan: Plan, profile: ChainProfile, machines: Machines) -> Forecast:
    """Simulate a run on given machines.

    Raises:
        UserError: as `chain_of`.
        RunError: the chain can't progress with its buffers.
    """
    late = [late.delay for edges in plan.wiring.blocks for late in edges.late]
    capacity = config.buffers.capacity
    num_batches = FEWEST_BATCHES + 2 * max([0, *late])
    if machines.cores is not None:  # until every buffer below a slow block is full, those blocks take core time
        num_batches += 2 * (capacity + 1) * len(plan.blocks)
    simulated = Simulation(chain_of(config, plan), profile, machines, num_batches).run()
    samples_per_batch = plan.num_samples / plan.batches_per_epoch
    return Forecast(simulated, samples_per_batch / simulated.period_s, _bottleneck(profile, simulated, machines))


def _bottleneck(profile: ChainProfile, simulated: Simulated, machines: Machines) -> str:
    if machines.cores is not None and simulated.busy[0] > 0.95 * machines.cores:
        return f"the {machines.cores} cores of this machine, which {len(profile.blocks) + 1} actors share"
    shares = simulated.shares
    busiest = max(range(len(shares)), key=lambda index: shares[index].get("compute", 0.0))
    if machines.cores is not None and profile.load.wall_s > max(block.busy_s for block in profile.blocks):
        return "the source, which takes longer to load a batch than any block to train on it"
    share = shares[busiest].get("compute", 0.0)
    waits = {name: part for name, part in shares[busiest].items() if name.startswith("wait_")}
    longest = max(waits, key=lambda name: waits[name], default="")
    if share >= 0.7 or not longest:
        return f"{block_name(busiest)}, which computes {share:.0%} of the time"
    return f"{longest}: {block_name(busiest)}, the busiest block, computes {share:.0%} of the time"


def speedups(exact: ChainProfile, period_s: float, machines: Machines) -> dict[str, Any]:
    """Return how much faster than back-propagation a chain is.

    Args:
        exact: profile of the same blocks under back-propagation, without auxiliary heads.
        period_s: predicted time per batch of the chain.
        machines: that pipelined back-propagation may use, too.

    One process takes the blocks' times one after another. 1F1B with M micro-batches takes the first one's way through
    the chain and M - 1 more turns of the slowest stage (Narayanan et al. 2019, 1806.03377), each 1/M of a batch: what
    smaller batches lose in efficiency, and what messages take, is left out in its favour.
    """
    times = [block.busy_s for block in exact.blocks]
    stages, least_s = times, 0.0
    if machines.cores is not None:
        least_s = sum(block.cpu_s for block in exact.blocks) / machines.cores
    else:
        stages = [
            sum(times[i] for i, device in enumerate(machines.device_of) if device == index) / speed
            for index, speed in enumerate(machines.speeds)
        ]
    return {
        "backprop_one_process_s": sum(times),
        "over_backprop_one_process": sum(times) / period_s,
        "over_1f1b": {str(m): max(one_f_one_b(stages, m), least_s) / period_s for m in MICRO_BATCHES},
    }


def one_f_one_b(times: Sequence[float], num_micro_batches: int) -> float:
    """Return the time per batch of 1F1B over stages that take these times for a whole batch."""
    return (sum(times) + (num_micro_batches - 1) * max(times)) / num_micro_batches


def suggestion(config: RunConfig, profile: ChainProfile, made: Forecast, machines: Machines) -> str:
    """Return the one change that promises most."""
    times = [block.busy_s / _speed(machines, index) for index, block in enumerate(profile.blocks)]
    shares = made.simulated.shares[max(range(len(times)), key=lambda index: times[index])]
    average = sum(times) / len(times)
    if machines.cores is not None and profile.load.wall_s > max(times):
        return "loading is slower than training: set data.workers, or leave out data.augment"
    if machines.cores is not None and len(times) > machines.cores and made.simulated.busy[0] > 0.95 * machines.cores:
        return f"more blocks than cores do not train faster here: try network.blocks={machines.cores}"
    if shares.get("wait_feedback", 0.0) > 0.1 and config.schedule.name == "lockstep":
        return "blocks wait for each other after every batch: set schedule.name=pipeline"
    if shares.get("wait_feedback", 0.0) > 0.1:
        delay = 1 if config.schedule.delay_per_hop < 1 else 2
        return f"blocks wait for feedback: set schedule.delay_per_hop={delay}, whose gradients are later"
    if max(times) > 1.1 * average and config.network.blocks != "auto":
        return (
            f"the slowest block takes {max(times) / average:.2f} times the average: set network.blocks=auto, which "
            f"balances the cuts"
        )
    if shares.get("transfer", 0.0) > 0.1:
        return f"{shares['transfer']:.0%} of the slowest block's time is transfer: cut where activations are smaller"
    return "nothing stands out: blocks are balanced, and neither loading nor feedback holds them up"


def _speed(machines: Machines, index: int) -> float:
    return 1.0 if machines.cores is not None else machines.speeds[machines.device_of[index]]


def edge_facts(plan: Plan, profile: ChainProfile, simulated: Simulated) -> list[Mapping[str, Any]]:
    """Return bytes and staleness of every edge."""
    return [
        {
            "name": edge.name,
            "bytes_per_batch": profile.edges[edge.name].num_bytes,
            "staleness": simulated.staleness.get(edge.name),
        }
        for edge in plan.wiring.edges
    ]
