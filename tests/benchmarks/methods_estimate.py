"""How long the methods benchmark takes: from the runs that are there, else from what a batch cost when tried."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from tests.benchmarks.methods_plan import Lines, MethodsPlan, Unit

START_S = 1.5
"""Of a run: reading the data, building the blocks, writing the last snapshot."""
EVALUATION_COST = 1 / 3
"""Of a sample, where training on it costs 1."""
BATCH_S: Mapping[str, Mapping[str, float]] = {
    "methods": {"cnn": 0.072, "mlp": 0.014},
    "methods_short": {"cnn": 0.012, "mlp": 0.006},
}
"""File of results -> network -> seconds of one core for a batch of decoupled greedy learning."""
COST: Mapping[str, Mapping[str, float]] = {
    "cnn": {
        "auglocal": 2.3, "backprop": 0.6, "cdni": 1.6, "chunked_local": 0.7, "dni": 1.6, "dni_fully_unlocked": 2.5,
        "direct_feedback_alignment": 0.75, "drtp": 0.7, "features_replay": 0.75, "feedback_alignment": 0.65,
        "forward_forward": 2.6, "infopro": 2.5, "kolen_pollack": 0.65, "pipelined_backprop": 0.65, "shallow": 0.4,
        "sign_symmetry": 0.7,
    },
    "mlp": {
        "auglocal": 1.5, "cdni": 2.0, "dni": 2.0, "dni_fully_unlocked": 4.0, "infopro": 2.0, "shallow": 0.4,
        "forward_forward": 2.0,
    },
}  # fmt: skip
"""Network -> method -> its cost beside that of decoupled greedy learning, as tried; 1 where it is not listed."""


def seconds_left(plan: MethodsPlan, lines: Lines) -> float:
    """Return the seconds of one core that the missing tuning and final runs take."""
    current = plan.current(lines)
    return sum(unit_seconds_left(plan, unit, current) for unit in plan.units)


def unit_seconds_left(plan: MethodsPlan, unit: Unit, current: list[Mapping[str, Any]]) -> float:
    """Return the same for one method on one network, from the lines of this plan."""
    done = _done(unit, current)
    return sum(
        max(0, count - len(done.get(phase, []))) * _seconds(plan, unit, phase, done)
        for phase, count in plan.all_runs(unit).items()
    )


def _done(unit: Unit, lines: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    done: dict[str, list[float]] = {}
    for line in lines:
        if (line["network"], line["method"]) == (unit.network, unit.method):
            done.setdefault(line["phase"], []).append(line.get("cpu_s", 0.0))
    return done


def _seconds(plan: MethodsPlan, unit: Unit, phase: str, done: Mapping[str, list[float]]) -> float:
    """Scale what a run of the same method took by the samples that it trains on, else guess."""
    work = {name: _work(plan, unit.network, name) for name in ("tuning", "final")}
    for known in (phase, *work):
        if took := [spent for spent in done.get(known, []) if spent > 0]:
            return START_S + statistics.fmean(took) * work[phase] / work[known]
    batch = BATCH_S[plan.budget.name][unit.network] * COST[unit.network].get(unit.method, 1.0)
    return START_S + batch * work[phase] / plan.budget.batch_size


def _work(plan: MethodsPlan, network: str, phase: str) -> float:
    """Samples of a run, an evaluated one counted at its cost."""
    budget, own = plan.budget, plan.budget.networks[network]
    if phase == "tuning":
        return own.tuning_samples * budget.epochs + EVALUATION_COST * budget.validation_samples
    return own.final_samples * budget.epochs + EVALUATION_COST * budget.test_samples
