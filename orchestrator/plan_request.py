"""What `unlocked plan` is asked on the command line: checked, answered, printed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from actors.errors import UserError
from orchestrator.catalog import find_catalog
from orchestrator.config import load_config
from orchestrator.plan_command import Cluster, plan_run
from orchestrator.plan_report import print_report
from orchestrator.simulated_device import Link

MOST_DEVICES = 1000


@dataclass(frozen=True)
class PlanRequest:
    """The options of the command, as they were given."""

    devices: int | None = None
    device_speed: str | None = None
    link_mb_per_s: float | None = None
    latency_ms: float = 0.0
    jitter: float = 0.0
    timeline: Path | None = None
    seconds: float = 4.0

    def cluster(self) -> Cluster | None:
        """Return the cluster to simulate; None: the run is to be predicted on this machine.

        Raises:
            UserError: the options don't go together, or a value is out of its range.
        """
        if not 0.1 <= self.seconds <= 600:
            raise UserError(f"--seconds: got {self.seconds:g}, expected 0.1 to 600; choose another time")
        simulated = {
            "--link-mb-per-s": self.link_mb_per_s is not None,
            "--latency-ms": self.latency_ms != 0.0, "--jitter": self.jitter != 0.0,
        }  # fmt: skip
        if self.devices is None and self.device_speed is None:
            for option in (name for name, given in simulated.items() if given):
                raise UserError(f"{option}: describes a simulated cluster, expected --devices, too; add --devices N")
            return None
        speeds = self._speeds()
        if self.link_mb_per_s is not None and not 0 < self.link_mb_per_s < math.inf:
            raise UserError(f"--link-mb-per-s: got {self.link_mb_per_s:g}, expected more than 0; correct it")
        if not 0 <= self.latency_ms < math.inf:
            raise UserError(f"--latency-ms: got {self.latency_ms:g}, expected 0 or more; correct it")
        if not 0 <= self.jitter <= 3:
            raise UserError(f"--jitter: got {self.jitter:g}, expected 0 to 3; correct it")
        bandwidth = math.inf if self.link_mb_per_s is None else 1e6 * self.link_mb_per_s
        return Cluster(speeds, Link(self.latency_ms / 1000, bandwidth), self.jitter)

    def _speeds(self) -> tuple[float, ...]:
        words = [] if self.device_speed is None else self.device_speed.split(",")
        number = len(words) if self.devices is None else self.devices
        if not 1 <= number <= MOST_DEVICES:
            raise UserError(f"--devices: got {number}, expected 1 to {MOST_DEVICES}; choose another number")
        try:
            speeds = tuple(float(word) for word in words) or (1.0,) * number
        except ValueError:
            speeds = ()
        if not speeds or not all(0 < speed < math.inf for speed in speeds):
            raise UserError(
                f"--device-speed: got {self.device_speed!r}, expected numbers above 0 and commas between them, such "
                f"as 1,1,0.5; correct it"
            )
        if len(speeds) != number:
            raise UserError(
                f"--device-speed: got {len(speeds)} speeds for {number} devices, expected one for each; list {number} "
                f"numbers, or leave --devices out"
            )
        return speeds


def answer(
    files: Sequence[str], overrides: Sequence[str], request: PlanRequest, console: Console, *, as_json: bool
) -> None:
    """Plan a run and print the answer: a report, or one JSON object.

    Raises:
        UserError: config or options can't be used.
        RunError: the chain could not make progress.
    """
    cluster = request.cluster()
    config = load_config(files, overrides, find_catalog())
    if request.timeline is not None and not request.timeline.absolute().parent.is_dir():
        raise UserError(f"--timeline: {request.timeline.parent} is no folder; choose another file")
    status = Console(stderr=True, highlight=False)
    facts = plan_run(config, cluster, seconds=request.seconds, show=status.print, timeline=request.timeline)
    if as_json:
        print(json.dumps(facts, indent=1))  # noqa: T201
    else:
        print_report(facts, console)
