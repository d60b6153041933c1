"""What would keep a run from starting or from working well, seen before it starts."""

from __future__ import annotations

import os
from typing import Any

from orchestrator.chain_profile import ChainProfile
from orchestrator.config import RunConfig
from orchestrator.plan import Plan
from orchestrator.simulation import Machines
from orchestrator.specs import edge_settings

STORE_SHARE = 0.3
"""Part of a machine's memory that Ray takes for its object store by default."""
WINDOW_SHARE = 0.6
"""Part of the object store that messages on their way may fill."""


def start_up_checks(config: RunConfig, plan: Plan, profile: ChainProfile, machines: Machines) -> list[dict[str, Any]]:
    """Return each check with whether it passed and what was found."""
    memory = _machine_bytes()
    store = config.placement.object_store_bytes or round(STORE_SHARE * memory)
    settings = edge_settings(config, plan.wiring)
    on_their_way = sum(
        profile.edges[edge.name].num_bytes * settings.window * settings.limit for edge in plan.wiring.edges
    )
    needed = sum(block.memory_bytes for block in profile.blocks)
    checks = [
        ("config", True, "valid; data, network and cuts fit together"),
        ("buffers", True, "the chain makes progress with its buffers, to the end of the simulation"),
        (
            "object store", on_their_way <= WINDOW_SHARE * store,
            f"{_mb(on_their_way)} may be on its way, {_mb(WINDOW_SHARE * store)} are allowed (60 % of the store)",
        ),
    ]  # fmt: skip
    if machines.cores is not None:
        num_actors = len(profile.blocks) + 1
        checks += [
            ("memory", needed <= 0.8 * memory, f"blocks need {_mb(needed)} beside their processes, of {_mb(memory)}"),
            (
                "cores", len(profile.blocks) * config.placement.threads <= machines.cores,
                f"{num_actors} actors, {config.placement.threads} threads each, share {machines.cores} cores",
            ),
        ]  # fmt: skip
    return [{"name": name, "passed": bool(passed), "found": found} for name, passed, found in checks]


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _mb(number: float) -> str:
    return f"{number / 2**20:,.1f} MiB"
