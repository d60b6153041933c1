"""What the whole run knows. `orchestrator.train(config) -> Summary` is the Python API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import train as train
    from orchestrator.summary import Summary as Summary

__all__ = ["Summary", "train"]


def __getattr__(name: str) -> Any:
    """Import torch and Ray only when a run is asked for, so that `orchestrator.config` stays light."""
    if name == "train":
        from orchestrator.api import train

        return train
    if name == "Summary":
        from orchestrator.summary import Summary

        return Summary
    raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
