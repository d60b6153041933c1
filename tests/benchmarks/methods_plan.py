"""What the methods benchmark runs, and in which order: jobs follow from the results that are there already.

Every method gets the same number of tuning runs on validation data, then one final run per seed with the
best rates, on which alone the test data are read. Nothing is remembered elsewhere, so a plan can be stopped
anywhere and goes on from the file of results.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from actors.errors import UserError
from orchestrator.catalog import find_catalog
from orchestrator.config import RunConfig, config_from_mapping, resolved
from tests.benchmarks.methods_rates import Point, best_point, next_point, rate_at
from tests.benchmarks.methods_table import rows
from tests.benchmarks.methods_targets import REFERENCES, TARGET_GAPS

ROOT = Path(__file__).parents[2]
METHODS = ROOT / "configs/methods"
LEARNT_FROM = ("seed", "data", "network", "rule", "objective", "schedule", "optimizer", "training")
"""Sections of a config on which the weights of a run depend: first in, first out, the others change none."""
Key = tuple[str, str]
"""Phase and config hash: what makes a run the same run."""


@dataclass(frozen=True)
class NetworkBudget:
    """What every method gets on one network.

    Args:
        config: file with the network.
        tuning_samples: trained on while the rates are chosen.
        final_samples: trained on in a final run.
        timed_batches: of a run over Ray whose pace is taken.
    """

    config: str
    tuning_samples: int
    final_samples: int
    timed_batches: int = 100


@dataclass(frozen=True)
class Budget:
    """What every method gets.

    Args:
        name: of the file of results.
        data: as the table calls it.
        networks: by name, in the order in which they are run.
        batch_size: samples per batch.
        epochs: passes over the training samples, of tuning and of final runs.
        tuning_runs: runs to choose the rates, for each method.
        validation_samples: held out, judged by while the rates are chosen.
        test_samples: read once at the end of a final run.
        seeds: of the final runs; each draws its own samples.
        tuning_seed: another one.
        timed_runs: runs per method whose pace is taken.
        longer: how many times the epochs of a final run, for methods that miss their gap and for what they miss it to.
    """

    name: str
    data: str
    networks: Mapping[str, NetworkBudget]
    batch_size: int
    epochs: int
    tuning_runs: int
    validation_samples: int
    test_samples: int
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seed: int = 100
    timed_runs: int = 3
    longer: int = 3


FULL = Budget(
    name="methods",
    data="Fashion-MNIST",
    networks={
        "cnn": NetworkBudget("configs/fashion_mnist_cnn_small.yaml", 3200, 8192, timed_batches=60),
        "mlp": NetworkBudget("configs/fashion_mnist_mlp.yaml", 6400, 16000),
    },
    batch_size=64,
    epochs=5,
    tuning_runs=4,
    validation_samples=3000,
    test_samples=10000,
)
SHORT = Budget(
    name="methods_short",
    data="digits",
    networks={
        "cnn": NetworkBudget("configs/digits_cnn.yaml", 1184, 1184),
        "mlp": NetworkBudget("configs/digits_mlp.yaml", 1184, 1184),
    },
    batch_size=32,
    epochs=8,
    tuning_runs=3,
    validation_samples=253,
    test_samples=360,
    seeds=(0,),
    timed_runs=1,
)


@dataclass(frozen=True)
class Unit:
    """A method on a network; `rates`: its tuned settings by dotted key, as its config has them."""

    network: str
    method: str
    rates: Mapping[str, float] = field(hash=False)
    refused: str | None = None


@dataclass(frozen=True)
class Job:
    """One run: `phase` is tuning, final, longer or throughput, `config` all that it depends on."""

    phase: str
    network: str
    method: str
    seed: int
    rates: Mapping[str, float] = field(hash=False)
    config: RunConfig = field(hash=False, compare=False, repr=False)

    @cached_property
    def config_hash(self) -> str:
        """16 digits of the SHA-256 of what the weights depend on."""
        whole = resolved(self.config)
        plain = {name: whole[name] for name in LEARNT_FROM}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def key(self) -> Key:
        """What makes this run the same as one in a file of results."""
        return self.phase, self.config_hash


Lines = Mapping[Key, Mapping[str, Any]]


def method_names(folder: Path = METHODS) -> list[str]:
    """Return all methods: the references first, then those with a target, then the others.

    Those under `replay` are left out: what they learn depends on timing, and stragglers are their subject.
    """
    names = sorted(path.stem for path in folder.glob("*.yaml") if not _is_replay(path))
    first = [*REFERENCES, *(name for targets in TARGET_GAPS.values() for name in targets)]
    return [*dict.fromkeys(name for name in first if name in names), *(n for n in names if n not in first)]


def _is_replay(path: Path) -> bool:
    return OmegaConf.select(OmegaConf.load(path), "schedule.name") == "replay"


class MethodsPlan:
    """All runs of the benchmark.

    Args:
        budget: what every method gets.
        methods: names, in the order in which they are run; default all.
        networks: those of the budget to run; default all.
        folder: where the methods' configs are.
    """

    def __init__(
        self,
        budget: Budget,
        methods: Collection[str] = (),
        networks: Collection[str] = (),
        folder: Path = METHODS,
    ) -> None:
        self.budget, self.folder = budget, folder
        self._catalog = find_catalog()
        self._files: dict[tuple[str, str], dict[str, Any]] = {}
        self._jobs: dict[tuple[Any, ...], Job] = {}
        self.units = [
            self._unit(network, method)
            for method in method_names(folder)
            for network in budget.networks
            if (not methods or method in methods) and (not networks or network in networks)
        ]

    def next_job(self, lines: Lines, running: Collection[Job]) -> Job | None:
        """Return the first run that is missing, can start, and does not run already; None: wait, or all is done.

        A partial result is useful: tuning and seed 0 of every method come before the other seeds.
        """
        for job in self._missing(lines, running):
            if job not in running:
                return job
        return None

    def _missing(self, lines: Lines, running: Collection[Job]) -> Iterator[Job]:
        tuned = {(job.network, job.method) for job in running if job.phase == "tuning"}
        for seed in self.budget.seeds:
            for unit in self.units:
                if unit.refused is not None or (unit.network, unit.method) in tuned:
                    continue
                job = self.next_tuning(unit, lines)
                if job is None:
                    job = self.final(unit, seed, lines)
                if job is not None and job.key not in lines:
                    yield job

    def timed_jobs(self) -> Iterator[Job]:
        """Yield the runs over Ray whose pace is taken, repetitions outermost, so that a busy moment hits all alike."""
        for repetition in range(self.budget.timed_runs):
            for unit in self.units:
                if unit.refused is None:
                    yield self._job(unit, "throughput", repetition, dict(unit.rates))

    def longer_jobs(self, lines: Lines) -> list[Job]:
        """Return final runs with more epochs, seed by seed: would a method that misses its gap get there later?"""
        current = self.current(lines)
        jobs: list[Job | None] = []
        for network, targets in TARGET_GAPS.items():
            units = {unit.method: unit for unit in self.units if unit.network == network and unit.refused is None}
            missed = [row.method for row in rows(current, network, targets) if row.target_verdict == "missed"]
            names = ["backprop", *missed] if missed else []
            jobs += [
                self.final(units[name], seed, lines, "longer")
                for seed in self.budget.seeds for name in names if name in units
            ]  # fmt: skip
        return [job for job in jobs if job is not None]

    def all_runs(self, unit: Unit) -> dict[str, int]:
        """Return how many runs a method gets in each phase."""
        return {"tuning": self.budget.tuning_runs, "final": len(self.budget.seeds)} if unit.refused is None else {}

    def current(self, lines: Lines) -> list[Mapping[str, Any]]:
        """Return the lines of this plan: those of other budgets or older configs are left out."""
        jobs: list[Job] = [*self.timed_jobs()]
        for unit in self.units:
            if unit.refused is None:
                jobs += self._tuning_jobs(unit, lines)
                for phase in ("final", "longer"):
                    found = (self.final(unit, seed, lines, phase) for seed in self.budget.seeds)
                    jobs += [job for job in found if job is not None]
        return [lines[job.key] for job in jobs if job.key in lines]

    # ------------------------------------------------------------------ one method

    def next_tuning(self, unit: Unit, lines: Lines) -> Job | None:
        """Return the next run that helps to choose the rates; None if all have been done."""
        tried = self._tried(unit, lines)
        if len(tried) == self.budget.tuning_runs:
            return None
        return self._tuning(unit, next_point(tried, len(unit.rates)))

    def final(self, unit: Unit, seed: int, lines: Lines, phase: str = "final") -> Job | None:
        """Return the final (or `longer`) run of a seed; None while rates are being chosen, or if no rate worked."""
        tried = self._tried(unit, lines)
        best = best_point(tried)
        if len(tried) < self.budget.tuning_runs or best is None:
            return None
        return self._job(unit, phase, seed, _rates(unit, best))

    def _tried(self, unit: Unit, lines: Lines) -> dict[Point, float | None]:
        """Replay the search from the results that are there."""
        tried: dict[Point, float | None] = {}
        while len(tried) < self.budget.tuning_runs:
            point = next_point(tried, len(unit.rates))
            line = lines.get(self._tuning(unit, point).key)
            if line is None:
                break
            tried[point] = line.get("validation_accuracy")
        return tried

    def _tuning_jobs(self, unit: Unit, lines: Lines) -> list[Job]:
        return [self._tuning(unit, point) for point in self._tried(unit, lines)]

    def _tuning(self, unit: Unit, point: Point) -> Job:
        return self._job(unit, "tuning", self.budget.tuning_seed, _rates(unit, point))

    # ------------------------------------------------------------------ configs

    def _unit(self, network: str, method: str) -> Unit:
        try:
            optimizer = self._config(network, method, {}).optimizer
        except UserError as error:
            return Unit(network, method, {}, refused=str(error))
        rates = {"optimizer.lr": optimizer.lr}
        if optimizer.synthesizer:
            rates["optimizer.synthesizer.lr"] = float(optimizer.synthesizer.get("lr", optimizer.lr))
        return Unit(network, method, rates)

    def _job(self, unit: Unit, phase: str, seed: int, rates: Mapping[str, float]) -> Job:
        known = (unit.network, unit.method, phase, seed, *rates.values())
        if known not in self._jobs:
            settings = {**rates, "seed": seed, **self._phase_settings(phase, unit.network)}
            config = self._config(unit.network, unit.method, settings)
            self._jobs[known] = Job(phase, unit.network, unit.method, seed, dict(rates), config)
        return self._jobs[known]

    def _phase_settings(self, phase: str, network: str) -> dict[str, Any]:
        """What a phase says by dotted key; the last evaluation, at the end of the run, is the only one."""
        budget, own = self.budget, self.budget.networks[network]
        always = {
            "data.batch_size": budget.batch_size, "training.epochs": budget.epochs, "evaluation.every_epochs": 0,
            "placement.threads": 1, "placement.backend": "in_process",
        }  # fmt: skip
        if phase == "throughput":
            timed = {"data.limit": own.timed_batches * budget.batch_size, "training.epochs": 1}
            return always | timed | {"evaluation.splits": [], "placement.backend": "ray"}
        if phase == "longer":
            always["training.epochs"] = budget.epochs * budget.longer
        if phase in ("final", "longer"):
            return always | {"data.limit": own.final_samples, "evaluation.splits": ["test"]}
        return always | {
            "data.limit": own.tuning_samples + budget.validation_samples,
            "data.validation": budget.validation_samples,
            "evaluation.splits": ["validation"],
        }

    def _config(self, network: str, method: str, settings: Mapping[str, Any]) -> RunConfig:
        raw = copy.deepcopy(self._raw(network, method))
        for key, value in settings.items():
            *sections, last = key.split(".")
            functools.reduce(lambda tree, name: tree.setdefault(name, {}), sections, raw)[last] = value
        return config_from_mapping(raw, self._catalog)

    def _raw(self, network: str, method: str) -> dict[str, Any]:
        """Read the two files of a unit once; that is most of the time that a config takes."""
        if (network, method) not in self._files:
            files = [ROOT / self.budget.networks[network].config, self.folder / f"{method}.yaml"]
            merged = OmegaConf.merge(*(OmegaConf.load(file) for file in files))
            self._files[network, method] = OmegaConf.to_container(merged)  # type: ignore[assignment]
        return self._files[network, method]


def _rates(unit: Unit, point: Point) -> dict[str, float]:
    return {key: rate_at(base, steps) for (key, base), steps in zip(unit.rates.items(), point, strict=True)}
