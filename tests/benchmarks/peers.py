"""Our throughput beside everything that a user could take instead, in one command.

    python tests/benchmarks/peers.py [--repeats 3] [--json] [--minutes 15] [--network cnn] [--fresh] [--table]
    python tests/benchmarks/peers.py --time-to-accuracy [--target 0.88]

A round runs every arm once, one after another, each in processes of its own with nothing else beside it; the rounds
follow each other, and medians are taken over them. Every run is a line of results/peers.jsonl with machine, versions,
commit and load, and is not repeated: a command that was stopped goes on where it was. `--fresh` forgets them.

Two networks: `cnn` is bound by computing, `mlp` by what a step costs besides. All arms train the same network from the
same weights on the same batches of 128, with the same optimizer, in fp32; ours has an auxiliary head besides.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.benchmarks.methods_runs import commit, surroundings
from tests.benchmarks.peers_arms import GROUPS
from tests.benchmarks.peers_costs import costs
from tests.benchmarks.peers_process import run_group
from tests.benchmarks.peers_report import Line, result, text

LINES = Path(__file__).parent / "results/peers.jsonl"
STEPS = {"cnn": 20, "mlp": 300}
"""Steps that are timed in a run."""


def read_lines(path: Path = LINES) -> list[Line]:
    """Return the runs that have been made."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def missing(lines: Sequence[Line], repeats: int, networks: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield (repeat, network, group) of the runs that have not been made, round by round."""
    done = {(line["repeat"], line["network"], line["group"]) for line in lines}
    for repeat in range(repeats):
        for network in networks:
            for group in GROUPS:
                if (repeat, network, group) not in done:
                    yield repeat, network, group


def measure(arguments: argparse.Namespace) -> list[Line]:
    """Make the runs that are missing, until the time is up, and return all that there are."""
    if arguments.fresh:
        LINES.unlink(missing_ok=True)
    lines, until = read_lines(), time.monotonic() + 60 * arguments.minutes
    where = surroundings() | {"commit": commit()}
    for repeat, network, group in list(missing(lines, arguments.repeats, arguments.network)):
        if time.monotonic() > until:
            print(f"stopped before round {repeat}, {network}, {group}; the same command goes on", file=sys.stderr)
            break
        facts = run_group(group, network, STEPS[network])
        line = {"repeat": repeat, "network": network, "group": group, **facts, **where}
        LINES.parent.mkdir(exist_ok=True)
        with open(LINES, "a") as file:
            file.write(json.dumps(line) + "\n")
        lines.append(line)
        print(f"round {repeat}, {network}: {_said(facts['arms'])}", file=sys.stderr, flush=True)
    return lines


def _said(arms: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {facts['samples_per_s']:.0f} samples/s" for name, facts in arms.items())


def main() -> None:
    """Measure and print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--network", nargs="*", default=["cnn", "mlp"], choices=["cnn", "mlp"])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after this time")
    parser.add_argument("--fresh", action="store_true", help="forget the runs that were made")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--time-to-accuracy", action="store_true")
    parser.add_argument("--target", type=float, default=0.88, help="test accuracy, a fraction of 1")
    arguments = parser.parse_args()
    if arguments.time_to_accuracy:
        from tests.benchmarks.peers_accuracy import main as time_to_accuracy

        time_to_accuracy(arguments)
        return
    lines = read_lines() if arguments.table else measure(arguments)
    results = {network: result(lines, network, costs(network)) for network in arguments.network}
    if arguments.json:
        first = next(iter(results.values()))
        print(json.dumps({"ratios": first["ratios"], "networks": results}))
        return
    print(text(results))


if __name__ == "__main__":
    main()
