"""Faults of what is written: commits cut short, damaged files, a full disk, a small budget for what is kept."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import ray

from actors.fail_points import ProcessKilled
from orchestrator.api import train, verify
from tests.benchmarks import kills
from tests.benchmarks.fault_runs import DEADLINE_S, Facts, Running, disturbed, facts_of, undisturbed

IN_PROCESS = {"placement": {"backend": "in_process"}, "checkpoint": {"every_batches": 330}}
POINTS = ("half written", "before rename", "written")
DAMAGES = ("truncated", "flipped", "missing", "no manifest")
DISK_BYTES = 4 * 1024**2
CAP_BYTES = 512 * 1024


def _interrupted(folder: Path, at: str, position: int) -> None:
    """Train until the driver dies inside the commit of a position."""
    kill = {"kill": [{"actor": "orchestrator", "at": at, "batch": position}]}
    try:
        train(kills.config(folder, "backprop", {**IN_PROCESS, "faults": kill}), progress=False)
    except ProcessKilled:
        return
    raise RuntimeError(f"the driver was to die {at} at batch {position}")


def kill_commit(number: int) -> Facts:
    """The driver dies at each fail point of each commit; the same command goes on."""
    at, position = POINTS[number % 3], (329, 659, 989)[number // 3 % 3]
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        _interrupted(Path(folder, "run"), at, position)
        summary = train(kills.config(Path(folder, "run"), "backprop", IN_PROCESS), progress=False)
    return {"at": at, "position": position} | facts_of(summary, None, undisturbed("backprop"), 0)


def damage(number: int) -> Facts:
    """A file of the newest checkpoint is damaged; it is named, and the one before is used."""
    how = DAMAGES[number % 4]
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name, "run")
        _interrupted(folder, "written", 659)
        newest = sorted((folder / "checkpoints").iterdir())[-1]
        shard = next(newest.glob("block1.*"))
        content = bytearray(shard.read_bytes())
        if how == "truncated":
            shard.write_bytes(content[:-9])
        elif how == "flipped":
            content[len(content) // 2] ^= 1
            shard.write_bytes(content)
        else:
            (shard if how == "missing" else newest / "manifest.json").unlink()
        found = verify(folder)
        summary = train(kills.config(folder, "backprop", IN_PROCESS), progress=False)
    facts = facts_of(summary, None, undisturbed("backprop"), 0)
    named = newest.name if how == "no manifest" else shard.name
    is_named = any(named in line for line in found.lines)
    if not is_named or found.usable != 329:
        facts |= {"held": False, "why": f"verify says {found.lines}, goes on from {found.usable}"}
    return {"how": how} | facts


def full_disk(number: int) -> Facts:
    """A disk of 4 MB is filled while the run takes checkpoints on it, and freed when one has failed."""
    seen: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as disk:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk], capture_output=True, check=False
        )
        if mounted.returncode:
            return {"held": None, "why": "no disk could be mounted; run as root", "lost": 0}

        def act(run: Running) -> None:
            filler = Path(disk, "filler")
            with open(filler, "wb", buffering=0) as file:
                try:
                    while file.write(b"\0" * 4096):
                        pass
                except OSError:
                    seen["full_at"] = run.status()["batch"]
            seen["failed"] = run.wait_for(lambda: bool(run.events("checkpoint failed")))
            filler.unlink()
            done = len(run.events("checkpoint"))
            seen["cleared"] = run.wait_for(lambda: len(run.events("checkpoint")) > done)

        sections = {"checkpoint": {"every_batches": 10, "uri": disk}}
        try:
            summary, told = disturbed(lambda folder: kills.config(folder, "dgl", sections), 100 + 40 * number, act)
        finally:
            subprocess.run(["umount", disk], check=False)
    facts = facts_of(summary, told, undisturbed("dgl"), 0)
    if not (seen.get("failed") and seen.get("cleared")):
        facts |= {"held": False, "why": f"saw {seen}"}
    return seen | facts


def small_retention(number: int) -> Facts:
    """Producers may keep 512 KiB; checkpoints would come much later than that is full."""
    most = {"kept_bytes": 0}
    rule = ("dgl", "backprop")[number % 2]

    def act(run: Running) -> None:
        while run.status()["state"] == "running":
            hosts = list(run.cluster._hosts.values())  # type: ignore[attr-defined]
            asked = [host.report.options(concurrency_group="control").remote() for host in hosts]
            try:
                kept = [report["kept_bytes"] for report in ray.get(asked, timeout=DEADLINE_S)]
            except ray.exceptions.RayError:
                return  # the run has ended
            most["kept_bytes"] = max(most["kept_bytes"], *kept)

    sections = {"checkpoint": {"every_batches": 5000}, "recovery": {"mode": "local", "retention_bytes": CAP_BYTES}}
    summary, told = disturbed(lambda folder: kills.config(folder, rule, sections), 20, act)
    facts = facts_of(summary, told, undisturbed(rule), 0)
    warnings = [event for event in summary.events if event["event"] == "retention"]
    if not 0 < most["kept_bytes"] <= CAP_BYTES or len(warnings) > 1:
        facts |= {"held": False, "why": f"kept {most['kept_bytes']} of {CAP_BYTES} bytes, {len(warnings)} warnings"}
    return {"rule": rule, "warnings": len(warnings), "cap_bytes": CAP_BYTES} | most | facts
