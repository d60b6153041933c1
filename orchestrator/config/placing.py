"""What one block asks of its machine: the settings of all, with its own over them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.config.sections import PlacementSection


@dataclass(frozen=True)
class Place:
    """What a block asks for; `cpus` may be left to the cluster."""

    cpus: float | Literal["auto"]
    gpus: float
    accelerator_type: str | None
    labels: Mapping[str, str]
    resources: Mapping[str, float]


def place_of(placement: PlacementSection, index: int) -> Place:
    """Return what a block asks for; one whose own `gpus` is 0 is not tied to the kind of GPU that all ask for."""
    own = placement.blocks.get(index)
    place = Place(
        placement.cpus_per_block, placement.gpus_per_block, placement.accelerator_type, placement.labels,
        placement.resources,
    )  # fmt: skip
    if own is None:
        return place
    return Place(
        place.cpus if own.cpus is None else own.cpus,
        place.gpus if own.gpus is None else own.gpus,
        None if own.gpus == 0 and own.accelerator_type is None else own.accelerator_type or place.accelerator_type,
        place.labels if own.labels is None else own.labels,
        place.resources if own.resources is None else own.resources,
    )
