"""Which blocks share an actor, and what that asks of its machine. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from actors.errors import UserError
from orchestrator.config.placing import Place, place_of
from orchestrator.config.sections import PlacementSection, RunConfig

_EQUAL = ("labels", "accelerator_type")
"""Of a place: what all blocks of an actor must say alike, since it is on one node."""


def blocks_of_actors(placement: PlacementSection, num_blocks: int) -> list[range]:
    """Return the blocks of every actor: neighbours, at most `blocks_per_actor`, in parts as equal as can be."""
    num_actors = -(-num_blocks // (placement.blocks_per_actor or 1))
    size, rest = divmod(num_blocks, num_actors)
    ends = list(itertools.accumulate(size + (actor < rest) for actor in range(num_actors)))
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def shared_place(placement: PlacementSection, blocks: Sequence[int], cpus: float) -> Place:
    """Return what an actor asks for: what its blocks ask for, taken together.

    Args:
        placement: of all blocks.
        blocks: indices of those that share it.
        cpus: of a block that leaves it to the cluster.
    """
    places = [place_of(placement, index) for index in blocks]
    resources: Counter[str] = Counter()
    for place in places:
        resources.update(place.resources)  # type: ignore[arg-type] - amounts are fractions
    return Place(
        _added(cpus if place.cpus == "auto" else place.cpus for place in places),
        _added(place.gpus for place in places),
        places[0].accelerator_type,
        places[0].labels,
        dict(resources),
    )


def gpu_of(placement: PlacementSection, blocks: Sequence[int], index: int) -> int:
    """Return which of its actor's GPUs a block computes on: those before it take their parts first."""
    return int(_added(place_of(placement, before).gpus for before in blocks if before < index))


def _added(amounts: Iterable[float]) -> float:
    """A sum without the dust of binary fractions, which Ray would not take."""
    return round(sum(amounts), 4)


def check_sharing(config: RunConfig, num_blocks: int | None) -> None:
    """Refuse blocks that can't share an actor.

    Args:
        config: to look at.
        num_blocks: None: not known yet.

    Raises:
        UserError: names the key.
    """
    placement, per_actor = config.placement, config.placement.blocks_per_actor or 1
    if per_actor == 1:
        return
    where = f"placement.blocks_per_actor: got {per_actor}"
    if placement.backend == "in_process":
        raise UserError(
            f"{where} with placement.backend 'in_process', where all blocks are in one process anyway, expected 1; "
            f"leave it out or set placement.backend=ray"
        )
    if num_blocks is not None and per_actor > num_blocks:
        raise UserError(f"{where}, expected at most the number of blocks, {num_blocks}; lower it")
    for key, found, why in (
        ("placement.pin_cpus", placement.pin_cpus, "cores are claimed by whole processes"),
        ("training.compile", config.training.compile, "torch's compiler works for one thread of a process at a time"),
    ):
        if found:
            raise UserError(f"{where} with {key}, but {why}, expected only one of the two; leave one out")
    if num_blocks is not None:
        for blocks in blocks_of_actors(placement, num_blocks):
            _check_places(placement, blocks, where)


def _check_places(placement: PlacementSection, blocks: range, where: str) -> None:
    first, *others = [place_of(placement, index) for index in blocks]
    names = f"blocks {blocks[0]} to {blocks[-1]}"
    for key in _EQUAL:
        differing = next((place for place in others if getattr(place, key) != getattr(first, key)), None)
        if differing is not None:
            raise UserError(
                f"{where}, so {names} share an actor, but placement.blocks gives them {key} {getattr(first, key)!r} "
                f"and {getattr(differing, key)!r}, expected the same; give them alike or lower blocks_per_actor"
            )
    gpus = shared_place(placement, blocks, 0.0).gpus
    if gpus > 1 and gpus != int(gpus):
        raise UserError(
            f"{where}, so {names} share an actor and {gpus:g} GPUs, expected at most 1 or a whole number together; "
            f"change placement.gpus_per_block or blocks_per_actor"
        )
