"""Blocks killed by SIGKILL at random moments of runs over Ray: what is lost, and how long recovery takes.

    python tests/benchmarks/kills.py                100 seeded runs over five rules, local and global by turns
    python tests/benchmarks/kills.py --runs 10      fewer
    python tests/benchmarks/kills.py --table        what has been run so far

Each run trains on generated data with a block (any of them, by the seed) killed once at a random batch; its weights
must equal those of the undisturbed run in one process. One JSON line per run in results/kills.jsonl; a run that is
there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from orchestrator.api import train  # noqa: E402
from orchestrator.catalog import find_catalog  # noqa: E402
from orchestrator.cluster.ray_cluster import RayCluster  # noqa: E402
from orchestrator.config import RunConfig, config_from_mapping  # noqa: E402
from orchestrator.summary import Summary  # noqa: E402
from tests.benchmarks.methods_results import FOLDER  # noqa: E402
from tests.benchmarks.methods_runs import commit, surroundings  # noqa: E402

RESULTS = FOLDER / "kills.jsonl"
BLOCKS, EPOCHS, BATCHES = 3, 90, 990
DEADLINE_S = 120.0
RULES: Mapping[str, Mapping[str, Any]] = {
    "dgl": {"rule": {"name": "local"}},
    "cdni": {"rule": {"name": "synthetic_gradients", "conditioned": True}, "schedule": {"delay_per_hop": 2}},
    "backprop": {"rule": {"name": "backprop"}, "schedule": {"delay_per_hop": 2}},
    "overlapping": {"rule": {"name": "backprop", "reach": 2, "losses": "every"}, "schedule": {"delay_per_hop": 1}},
    "direct_feedback_alignment": {"rule": {"name": "direct_feedback_alignment"}, "schedule": {"delay_per_hop": 2}},
}


def config(folder: Path, rule: str, sections: Mapping[str, Any]) -> RunConfig:
    """Return one run's config."""
    raw = {
        "seed": 3,
        "data": {"name": "generated", "shape": [2, 8, 8], "classes": 4, "size": 176, "batch_size": 16},
        "network": {"name": "mlp", "widths": [64, 64], "blocks": BLOCKS},
        "objective": {"name": "cross_entropy"},
        "optimizer": {"name": "sgd", "lr": 0.003, "momentum": 0.9},
        "training": {"epochs": EPOCHS},
        "evaluation": {"every_epochs": 30},
        "run_dir": str(folder),
        **RULES[rule],
        **sections,
    }
    return config_from_mapping(raw, find_catalog())


def killed_run(cluster: RayCluster, rule: str, mode: str, seed: int) -> tuple[Summary, dict[str, Any]]:
    """Train with a block killed at a random batch; return the result and what was done."""
    draw = random.Random(seed)
    block, batch, late_s = draw.randrange(BLOCKS), draw.randrange(5, BATCHES // 2), draw.random()
    told: dict[str, Any] = {"block": block, "after_batch": batch}
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        run = Path(folder) / "run"

        def kill() -> None:
            until = time.monotonic() + DEADLINE_S
            pause = threading.Event()
            while time.monotonic() < until:
                try:
                    status = json.loads((run / "status.json").read_text())
                except OSError:
                    status = {"batch": -1, "state": "starting"}
                if status["state"] not in ("starting", "running"):
                    return  # too late: the run has ended
                if status["batch"] >= batch:
                    pause.wait(late_s * 0.2)
                    os.kill(status["blocks"][block]["pid"], signal.SIGKILL)
                    told["killed_at"] = time.time()
                    return
                pause.wait(0.02)

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        sections = {"checkpoint": {"every_batches": 25}, "recovery": {"mode": mode, "spares": 1}}
        summary = train(config(run, rule, sections), progress=False, cluster=cluster)
        thread.join(DEADLINE_S)
    return summary, told


def line_of(cluster: RayCluster, rule: str, mode: str, seed: int, expected: Summary) -> dict[str, Any] | None:
    """Do one run and say what it has shown; None if it was stopped, with other weights than at its end."""
    summary, told = killed_run(cluster, rule, mode, seed)
    if summary.status != "completed":
        return None
    got, wanted = ([block["weights_sha256"] for block in x.blocks] for x in (summary, expected))
    lost = [event for event in summary.events if event["event"] == "lost"]
    back = [event for event in summary.events if event["event"] == "recovered"]
    return {
        "rule": rule, "mode": mode, "seed": seed, **told, "lost": len(lost), "equal_weights": got == wanted,
        "balanced": not [event for event in summary.events if event["event"] == "imbalance"],
        "recovered_after_s": [event["after_s"] for event in back if event["actor"] in {e["actor"] for e in lost}],
        "batches_repeated": [event["batches_repeated"] for event in back], "wall_s": round(summary.wall_s, 2),
        "load": round(os.getloadavg()[0], 1),
        **({} if got == wanted else {"weights_sha256": got, "expected_sha256": wanted, "events": summary.events}),
    }  # fmt: skip


def show(lines: list[dict[str, Any]]) -> None:
    """Print a table, and what did not hold."""
    print("| rule | mode | runs | blocks lost | equal weights | ledgers balanced | recovery, median s | slowest |")
    print("|---|---|---|---|---|---|---|---|")
    for key in dict.fromkeys((line["rule"], line["mode"]) for line in lines):
        own = [line for line in lines if (line["rule"], line["mode"]) == key]
        took = [seconds for line in own for seconds in line["recovered_after_s"]] or [float("nan")]
        counts = [sum(bool(line[name]) for line in own) for name in ("equal_weights", "balanced")]
        print(
            f"| {key[0]} | {key[1]} | {len(own)} | {sum(line['lost'] for line in own)} | {counts[0]} | {counts[1]} | "
            f"{statistics.median(took):.2f} | {max(took):.2f} |"
        )
    wrong = [line for line in lines if not (line["equal_weights"] and line["balanced"] and line["lost"])]
    for line in wrong:
        print(f"did not hold: {line['rule']}, {line['mode']}, seed {line['seed']}: {line['lost']} blocks lost")


def main() -> int:
    """Run what is missing; 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--table", action="store_true", help="print what has been run so far")
    arguments = parser.parse_args()
    lines = [json.loads(text) for text in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    done = {(line["rule"], line["mode"], line["seed"]) for line in lines}
    names = list(RULES)
    wanted = [(names[n % 5], ("local", "global")[n // 5 % 2], n) for n in range(arguments.runs)]
    missing = [] if arguments.table else [run for run in wanted if run not in done]
    if missing:
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            alone = {"placement": {"backend": "in_process"}}
            expected = {
                r: train(config(Path(folder) / r, r, alone), progress=False) for r in {run[0] for run in missing}
            }
        cluster = RayCluster(object_store_bytes=300 * 1024**2, keep=True)
        for rule, mode, seed in missing:
            found = line_of(cluster, rule, mode, seed, expected[rule])
            if found is None:
                return 130
            line = found | {"commit": commit(), **surroundings()}
            lines.append(line)
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{len(lines)} of {arguments.runs}: {rule}, {mode}, block {line['block']} after batch "
                  f"{line['after_batch']}: equal weights {line['equal_weights']}, recovered after "
                  f"{line['recovered_after_s']} s", flush=True)  # fmt: skip
    show(lines)
    return int(any(not (line["equal_weights"] and line["balanced"]) for line in lines))


if __name__ == "__main__":
    sys.exit(main())
