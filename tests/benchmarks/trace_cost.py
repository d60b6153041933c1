"""What recording for `timeline.json` costs a block: nanoseconds per operation, and the share of a step.

    python tests/benchmarks/trace_cost.py [--json]

A step of a middle block under back-propagation is replayed: the operations on `Times` that its program and its
task do for one batch, without any work between them. The share is of a step of 5 ms, a small one.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

from actors.times import Times
from actors.trace import Trace

STEP_S = 0.005
STEPS, REPEATS = 2000, 15


def step(times: Times, t: int) -> None:
    """Receive feedback, handle it, send on, update; receive an activation, handle it, send it up."""
    times.at(t, t - 1)
    with times.within("transfer"):
        pass
    with times.within("wait_feedback"):
        pass
    with times.within("compute", "feedback"):
        pass
    with times.within("transfer"):
        pass
    with times.within("compute", "update"):
        pass
    times.at(t)
    with times.within("transfer"):
        pass
    with times.within("wait_input"):
        pass
    times.at(t)
    with times.within("compute", "forward"):
        pass
    with times.within("transfer"):
        pass


def step_ns(trace_batches: list[range] | None) -> float:
    """Return the median time of one step, in nanoseconds."""
    found = []
    for _ in range(REPEATS):
        trace = None if trace_batches is None else Trace(trace_batches, shortest_s=-1.0)
        times = Times(trace=trace)
        times.start()
        since = time.process_time()
        for t in range(STEPS):
            if trace is not None and t % 300 == 0:
                trace.spans.clear()
            step(times, t)
        found.append((time.process_time() - since) / STEPS * 1e9)
    return median(found)


def main() -> None:
    """Print the measurement as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    kinds = {
        "without a trace": None,
        "other batches": [range(-1, 0)] * 2,
        "sampled batches": [range(-1, 0), range(STEPS)],
    }
    found = {name: step_ns(batches) for name, batches in kinds.items()}
    plain = found["without a trace"]
    result = {name: {"step_ns": ns, "share_of_5_ms": (ns - plain) / 1e9 / STEP_S} for name, ns in found.items()}
    if arguments.json:
        print(json.dumps(result))
        return
    for name, facts in result.items():
        print(f"{name}: {facts['step_ns']:.0f} ns per step, {100 * facts['share_of_5_ms']:.3f} % more of a 5 ms step")


if __name__ == "__main__":
    main()
