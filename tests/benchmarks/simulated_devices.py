"""How much of the time per step is compute where every block has a device of its own: the system's own cost.

    python -m tests.benchmarks.simulated_devices [--blocks 8 --compute-ms 50 --message-mb 4] [--steps 200]
        [--rule local] [--delay-per-hop 0] [--same-node socket] [--json]

Devices are simulated: each block's compute is a sleep (`simulated_network.py`), which leaves the processor free; edges,
messages, checks, actors and Ray are the real ones. Efficiency = compute time / time per step of the slowest block,
after a warm-up of 20 batches. Without options a table of four cases; beside our local rule stand locked and pipelined
back-propagation and direct feedback alignment through the same actors, 1F1B of torch.distributed.pipelining, and what
bare Ray allows on the machine of the hour, with and without plain torch in its blocks (`simulated_prototype.py`). The
bound is a device alone in one process with plain torch, to which nothing is sent.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

from actors.errors import RunError
from tests.benchmarks.methods_results import FOLDER
from tests.benchmarks.methods_runs import commit, surroundings
from tests.benchmarks.overlap import Starts, forward_steps
from tests.benchmarks.simulated_network import BATCH_SIZE, CLASSES, describe

WARM_UP = 20
"""Batches before the time per step is taken: the first ones that the timeline shows follow them."""

LOCKED_STEPS, LOCKED_WARM_UP = 10, 2
"""Where blocks wait for each other a step lasts as long as the whole chain, and every one is in the timeline."""

CASES = ((8, 50.0, 4.0, 200, 0.97), (16, 50.0, 4.0, 200, 0.95), (8, 10.0, 0.5, 500, 0.93), (32, 200.0, 4.0, 80, 0.98))
"""(blocks, compute in ms, message in MB, steps, efficiency to reach)."""

Arms = dict[str, tuple[str, float]]
"""(rule, delay_per_hop) by name."""

ARMS: Arms = {
    "local": ("local", 0),
    "backprop, locked (s=0)": ("backprop", 0),
    "backprop, pipelined (s=2)": ("backprop", 2),
    "direct feedback alignment (s=2)": ("direct_feedback_alignment", 2),
}

BOUND = "bound: plain torch, one device alone"
PROTOTYPES = {"bare Ray, nothing but sleeping": (), "bare Ray, plain torch": ("--torch",), BOUND: ("--alone",)}

MOST_LATE = 16
"""Blocks up to which arms with late feedback are measured: what is on its way between 32 of them, and the checkpoint at
the end with it, does not fit into 23 GiB."""


def config(arguments: argparse.Namespace, rule: str, delay_per_hop: float, folder: str) -> dict[str, Any]:
    """Return the run's config."""
    objective = {"factory": "tests.benchmarks.simulated_network:DeviceLoss"} if rule == "local" else {}
    return {
        "run_dir": f"{folder}/run",
        "data": {
            "name": "generated", "shape": [1, 2, 2], "classes": CLASSES,
            "size": BATCH_SIZE * arguments.steps, "test_size": 2, "batch_size": BATCH_SIZE,
        },
        "network": {"factory": "tests.benchmarks.simulated_network:build", "blocks": arguments.blocks},
        "rule": {"name": rule},
        "objective": objective,
        "schedule": {"delay_per_hop": delay_per_hop} if delay_per_hop else {},
        "training": {"epochs": 1},
        "evaluation": {"every_epochs": 0, "splits": []},
        "buffers": {"capacity": 16 if arguments.message_mb <= 1 else 4},
        # What is kept for a restart is one buffer again and again; a run in which an actor dies is no measurement.
        "recovery": {"retention_bytes": 2**40, "max_failures": 0},
        "placement": {"cpus_per_block": 0.01, "same_node": arguments.same_node},
    }  # fmt: skip


def step_s(steps: Starts, num_blocks: int, num_batches: int, warm_up: int = WARM_UP) -> float:
    """Return the time per step of the slowest block, from the first batch after the warm-up to the last one."""
    last = num_batches - 1
    names = [f"block{i}" for i in range(num_blocks)]
    return max((steps[name, last][0] - steps[name, warm_up][0]) / (last - warm_up) for name in names)


def measure(arguments: argparse.Namespace, rule: str, delay_per_hop: float, cluster: Any) -> dict[str, Any]:
    """Train one arm over Ray; return its efficiency and where its blocks' time went."""
    from orchestrator.api import train

    is_locked = rule == "backprop" and delay_per_hop == 0
    if is_locked:
        arguments = argparse.Namespace(**vars(arguments) | {"steps": LOCKED_STEPS})
    with tempfile.TemporaryDirectory(prefix="simulated-") as folder:
        summary = train(config(arguments, rule, delay_per_hop, folder), progress=False, cluster=cluster)
        steps = forward_steps(json.loads(Path(folder, "run", "timeline.json").read_text()))
    period = step_s(steps, arguments.blocks, arguments.steps, LOCKED_WARM_UP if is_locked else WARM_UP)
    shares = {
        name: round(median(block["time_fraction"][name] for block in summary.blocks), 4)
        for name in summary.blocks[0]["time_fraction"]
    }
    return {
        "rule": rule, "delay_per_hop": delay_per_hop, "step_ms": 1000 * period,
        "efficiency": arguments.compute_ms / 1000 / period, "wall_s": summary.wall_s, "time_fraction": shares,
    }  # fmt: skip


def tried(arguments: argparse.Namespace, rule: str, delay_per_hop: float, cluster: Any) -> dict[str, Any]:
    """Measure an arm; one that fails has an efficiency of 0 and says why."""
    try:
        return measure(arguments, rule, delay_per_hop, cluster)
    except RunError as error:
        return {"rule": rule, "delay_per_hop": delay_per_hop, "efficiency": 0.0, "failed": str(error).splitlines()[0]}


def case(
    arguments: argparse.Namespace, arms: dict[str, tuple[str, float]], cluster: Any, folder: Path
) -> dict[str, Any]:
    """Measure arms of one case; the first one's facts stand on top, those of the others in `beside`."""
    describe(folder / "network", arguments.blocks, arguments.compute_ms, arguments.message_mb * 2**20)
    facts = {name: getattr(arguments, name) for name in ("blocks", "compute_ms", "message_mb", "steps", "same_node")}
    found = {name: tried(arguments, rule, delay, cluster) for name, (rule, delay) in arms.items()}
    first, *others = found
    result = facts | found[first] | {"load": os.getloadavg()[0], "beside": {name: found[name] for name in others}}
    return result | {"commit": commit()} | surroundings()


def one_forward_one_backward(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure torch's 1F1B with as many micro-batches as devices, the fewest it takes, and twice as many."""
    several = (arguments.blocks, 2 * arguments.blocks)
    found = [apart(arguments, "simulated_1f1b", "--micro-batches", str(parts)) for parts in several]
    return max(found, key=lambda arm: arm["efficiency"])


def apart(arguments: argparse.Namespace, module: str, *options: str) -> dict[str, Any]:
    """Return what another benchmark says of the same devices, in processes of its own."""
    command = [
        sys.executable, "-m", f"tests.benchmarks.{module}", "--blocks", str(arguments.blocks),
        "--compute-ms", str(arguments.compute_ms), "--message-mb", str(arguments.message_mb), *options,
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        return {"efficiency": 0.0, "failed": f"{module}: {(ended.stderr.strip().splitlines() or [''])[-1]}"}
    return json.loads(ended.stdout.splitlines()[-1])


def table(arguments: argparse.Namespace, cluster: Any, folder: Path) -> None:
    """Measure the four cases, with steps of their own, in one cluster, and print a line for every arm."""
    for blocks, compute_ms, message_mb, steps, target in (CASES[number - 1] for number in arguments.cases):
        own = {"blocks": blocks, "compute_ms": compute_ms, "message_mb": message_mb, "steps": steps}
        chosen = argparse.Namespace(**vars(arguments) | own)
        arms = {name: arm for name, arm in ARMS.items() if blocks <= MOST_LATE or arm[1] == 0}
        found = case(chosen, arms, cluster, folder)
        found["beside"] |= {
            name: apart(chosen, "simulated_prototype", *how, "--steps", str(steps)) for name, how in PROTOTYPES.items()
        }
        if arguments.pipelining:
            found["beside"]["1F1B, torch.distributed.pipelining"] = one_forward_one_backward(chosen)
        save(found)
        print(f"{blocks} blocks x {compute_ms:g} ms x {message_mb:g} MB", flush=True)
        bound = found["beside"][BOUND]["efficiency"]
        reached = f"; {found['efficiency'] / bound:.3f} of the bound" if bound else ""
        said = f"(target {target}{reached}) {found.get('failed', '')}"
        print(f"  {'local':36} {found['efficiency']:.3f}  {said}", flush=True)
        for name, arm in found["beside"].items():
            print(f"  {name:36} {arm['efficiency']:.3f}{arm.get('failed', '') and '  ' + arm['failed']}", flush=True)


def save(result: dict[str, Any]) -> None:
    """Keep a measurement."""
    with (FOLDER / "simulated_devices.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


def main() -> None:
    """Print one measurement as JSON, or the table of all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--compute-ms", type=float, default=50.0)
    parser.add_argument("--message-mb", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rule", default="local")
    parser.add_argument("--delay-per-hop", type=float, default=0)
    parser.add_argument("--same-node", choices=("object_store", "socket"), default="object_store")
    parser.add_argument("--cases", type=int, nargs="+", default=[1, 2, 3, 4], help="of the table")
    parser.add_argument("--no-pipelining", dest="pipelining", action="store_false", help="without torch's 1F1B")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="devices-") as name:
        os.environ["SIMULATED"] = str(Path(name, "network"))
        from orchestrator.cluster.ray_cluster import RayCluster

        cluster = RayCluster(object_store_bytes=2 * 1024**3, keep=True)
        if arguments.blocks is None and not arguments.json:
            table(arguments, cluster, Path(name))
            return
        arguments.blocks = arguments.blocks or CASES[0][0]
        with redirect_stdout(sys.stderr):  # where Ray says what it has to say
            result = case(arguments, {"": (arguments.rule, arguments.delay_per_hop)}, cluster, Path(name))
    if "failed" in result:
        raise SystemExit(f"rule {arguments.rule}: {result['failed']}")
    save(result)
    print(json.dumps(result) if arguments.json else f"efficiency {result['efficiency']:.3f}")


if __name__ == "__main__":
    main()
