"""CPU seconds, memory and descriptors of processes, as the kernel counts them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, user and system; 0 if it is gone."""
    return _cpu_s(Path(f"/proc/{pid}/stat"))


def cpu_s_by_thread(pid: int) -> dict[str, float]:
    """Return the CPU seconds of a process's threads by name; threads of one name are added."""
    found: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        found[name] = found.get(name, 0.0) + _cpu_s(task / "stat")
    return found


def memory_bytes(pid: int) -> dict[str, int]:
    """Return `private`, `shared` and `open_files` of a process."""
    fields = {"private": ("Private_Clean", "Private_Dirty"), "shared": ("Shared_Clean", "Shared_Dirty")}
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    kilobytes = {row[0].rstrip(":"): int(row[1]) for row in rows}
    sums = {name: 1024 * sum(kilobytes[field] for field in parts) for name, parts in fields.items()}
    return sums | {"open_files": len(os.listdir(f"/proc/{pid}/fd"))}


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have started."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            facts = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(facts[1]), []).append(int(path.parent.name))
    found, waiting = [], [pid]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return found


def command(pid: int) -> str:
    """Return the command line of a process, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def total_cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds of several processes."""
    return sum(cpu_s(pid) for pid in pids)


def _cpu_s(stat: Path) -> float:
    try:
        facts = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(facts[11]) + int(facts[12])) / TICKS_PER_S
