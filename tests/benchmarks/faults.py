"""The fault matrix, for real over Ray: what is done to a run, and whether what is promised holds.

    python tests/benchmarks/faults.py                 every row that is not done yet, then the table
    python tests/benchmarks/faults.py --only node     one row; may be given several times
    python tests/benchmarks/faults.py --runs 1        so many runs of each row at most
    python tests/benchmarks/faults.py --table         what has been run so far
    python tests/benchmarks/faults.py --json          the table as JSON

One JSON line per run in results/faults.jsonl; a run that is there is not repeated. The rows that need a cluster of
their own (nodes, object store, Ray's calls) run in processes of their own. What kills.py has done is a row, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.benchmarks import kills  # noqa: E402
from tests.benchmarks.fault_rows import ROWS, WEIGHTS  # noqa: E402
from tests.benchmarks.fault_runs import WasStopped  # noqa: E402
from tests.benchmarks.methods_results import FOLDER  # noqa: E402
from tests.benchmarks.methods_runs import commit, surroundings  # noqa: E402

RESULTS = FOLDER / "faults.jsonl"
LONGEST_S = 300.0
Line = dict[str, Any]


def perform(name: str, number: int) -> Line:
    """Do one run and return its line; one that raises has not held.

    Raises:
        WasStopped: a signal has ended it.
    """
    row = ROWS[name]
    try:
        facts = row.run(number) if row.environment is None else _in_own_process(name, number, row.environment)
    except WasStopped:
        raise
    except Exception as error:
        traceback.print_exc()
        facts = {"held": False, "why": f"{type(error).__name__}: {error}".splitlines()[0], "lost": 0}
    return {
        "row": name,
        "run": number,
        **facts,
        "load": round(os.getloadavg()[0], 2),
        "commit": commit(),
    } | surroundings()


def _in_own_process(name: str, number: int, environment: Mapping[str, str]) -> Line:
    command = [sys.executable, __file__, "--alone", name, str(number)]
    done = subprocess.run(
        command, env={**os.environ, "RAY_worker_niceness": "0", **environment}, stdout=subprocess.PIPE, text=True,
        timeout=LONGEST_S, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def entries(lines: Sequence[Line]) -> list[Line]:
    """Return the rows of the table: counts, and medians over the runs of a row."""
    found = [
        _entry(name, row.fault, row.holds, [line for line in lines if line["row"] == name])
        for name, row in ROWS.items()
    ]
    return [_killed(), *(entry for entry in found if entry["runs"])]


def _entry(name: str, fault: str, holds: str, lines: Sequence[Line]) -> Line:
    told = [line for line in lines if line["held"] is not None]

    def median(key: str) -> float | None:
        values = [value for line in told for value in line.get(key, ())]
        return round(statistics.median(values), 2) if values else None

    return {
        "row": name, "fault": fault, "holds": holds, "runs": len(told),
        "failures": sum(not line["held"] for line in told), "lost": sum(line["lost"] for line in told),
        "detected_s": median("detected_s"), "recovered_s": median("recovered_s"), "trains_s": median("trains_s"),
        "batches_repeated": median("batches_repeated"),
        "messages_lost": sum(line.get("messages_lost", 0) for line in told),
    }  # fmt: skip


def _killed() -> Line:
    """Return the row of what kills.py has done."""
    lines = [json.loads(text) for text in kills.RESULTS.read_text().splitlines()] if kills.RESULTS.exists() else []
    told = [
        {
            "held": bool(line["equal_weights"] and line["balanced"] and line["lost"]), "lost": line["lost"],
            "recovered_s": line["recovered_after_s"], "batches_repeated": line["batches_repeated"][-1:],
        }
        for line in lines
    ]  # fmt: skip
    return _entry("kills", "SIGKILL of a block (kills.py)", WEIGHTS, told)


def show(lines: Sequence[Line]) -> None:
    """Print the table, and what did not hold."""
    print("| fault | must hold | runs | failures | actors lost | noticed s | back s | trains again s | repeated "
          "| messages lost |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    keys = ("fault", "holds", "runs", "failures", "lost", "detected_s", "recovered_s", "trains_s", "batches_repeated",
            "messages_lost")  # fmt: skip
    for entry in entries(lines):
        print("| " + " | ".join("" if entry[key] is None else str(entry[key]) for key in keys) + " |")
    for line in lines:
        if not line["held"]:
            print(f"{'not done' if line['held'] is None else 'did not hold'}: {line['row']}, run {line['run']}: "
                  f"{line['why']}")  # fmt: skip


def main() -> int:
    """Run what is missing; 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--runs", type=int, default=1000, help="so many of each row at most")
    parser.add_argument("--again", action="store_true", help="repeat runs that did not hold")
    parser.add_argument("--table", action="store_true", help="print what has been run so far")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.add_argument("--alone", nargs=2, metavar=("ROW", "RUN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        name, number = arguments.alone
        print(json.dumps(ROWS[name].run(int(number))))
        return 0
    lines: list[Line] = [json.loads(text) for text in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    by_key = {(line["row"], line["run"]): line for line in lines}
    for name, row in ROWS.items():
        for number in range(min(row.runs, arguments.runs)):
            known = by_key.get((name, number))
            is_done = known is not None and not (arguments.again and not known["held"])
            if arguments.table or is_done or name not in (arguments.only or ROWS):
                continue
            try:
                line = by_key[name, number] = perform(name, number)
            except WasStopped:
                return 130
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name} {number}: held {line['held']}, {line['why'] or ''} noticed {line.get('detected_s')} s, "
                  f"back {line.get('recovered_s')} s", file=sys.stderr, flush=True)  # fmt: skip
    found = list(by_key.values())
    if arguments.json:
        print(json.dumps(entries(found), indent=1))
    else:
        show(found)
    return int(any(line["held"] is False for line in found))


if __name__ == "__main__":
    sys.exit(main())
