"""The answer of `unlocked plan` as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_report(facts: Mapping[str, Any], console: Console) -> None:
    """Print the blocks, the edges, what is predicted, the checks and the suggestion."""
    console.print(_blocks(facts))
    console.print(_times(facts))
    console.print(_edges(facts))
    word = "simulated" if facts["simulated"] else "predicted"
    console.print(
        f"{word}: {facts['predicted_samples_per_s']:,.0f} samples/s, {1000 * facts['predicted_step_s']:.2f} ms per "
        f"batch of {facts['batch_size']}, {facts['batches_in_flight']:.1f} batches in flight; {_where(facts)}"
    )
    console.print(f"bottleneck: {facts['bottleneck']}")
    over = ", ".join(f"{value:.2f} (M = {m})" for m, value in facts["over_1f1b"].items())
    console.print(
        f"{word} speed-up: {facts['over_backprop_one_process']:.2f} over back-propagation in one process with as many "
        f"threads as a block; over 1F1B on the same devices {over}"
    )
    for check in facts["checks"]:
        console.print(f"check {check['name']}: {'good' if check['passed'] else 'WARNING'}, {check['found']}")
    console.print(f"suggestion: {facts['suggestion']}")


def _where(facts: Mapping[str, Any]) -> str:
    devices = facts["devices"]
    if facts["simulated"]:
        return f"{len(devices['speeds'])} simulated devices"
    beside = f", each {devices['slowdown']:.2f} times slower beside others"
    return f"{devices['busy_cores']:.2f} of {devices['cores']} cores of this machine busy{beside}"


def _blocks(facts: Mapping[str, Any]) -> Table:
    table = Table("block", "layers", "parameters", "of its head", "GFLOP/step", "MiB")
    for block in facts["blocks"]:
        flops = "" if block["flops"] is None else f"{block['flops'] / 1e9:.3f}"
        layers = block["layers"]
        named = ", ".join(layers) if len(layers) < 4 else f"{layers[0]} ... {layers[-1]} ({len(layers)})"
        memory = f"{block['memory_bytes']['all_with_gradients'] / 2**20:.1f}"
        table.add_row(block["name"], named, f"{block['parameters']:,}", f"{block['head_parameters']:,}", flops, memory)
    return table


def _times(facts: Mapping[str, Any]) -> Table:
    kinds = list(dict.fromkeys(kind for block in facts["blocks"] for kind in block["step_parts_s"]))
    table = Table("ms per batch", *kinds, "step", "computes", title=f"profiled on {facts['profiled_batches']} batches")
    for block in facts["blocks"]:
        parts = [f"{1000 * block['step_parts_s'].get(kind, 0.0):.2f}" for kind in kinds]
        share = f"{block['time_fraction'].get('compute', 0.0):.0%}"
        table.add_row(block["name"], *parts, f"{1000 * block['step_s']:.2f}", share)
    return table


def _edges(facts: Mapping[str, Any]) -> Table:
    table = Table("edge", "bytes per batch", "staleness, mean", "most")
    for edge in facts["edges"]:
        staleness = edge["staleness"]
        mean, most = ("", "") if staleness is None else (f"{staleness['mean']:.2f}", str(staleness["max"]))
        table.add_row(edge["name"], f"{edge['bytes_per_batch']:,}", mean, most)
    return table
