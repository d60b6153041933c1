"""Which processes go to nodes that came: those whose node was lost, and that share another's since."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

A_BIT = 1e-6
"""Sums of fractions are not exact."""


@dataclass(frozen=True)
class Need:
    """What a process takes of its node, by resource, and the labels that the node must have, as Ray's selectors."""

    amounts: Mapping[str, float]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Room:
    """What a node has left, by resource, and its labels."""

    free: Mapping[str, float]
    labels: Mapping[str, str]


def returns(
    needs: Sequence[Need],
    homes: Mapping[int, str],
    now: Mapping[int, str],
    alive: Collection[str],
    rooms: Mapping[str, Room],
) -> dict[int, str]:
    """Return where processes go, by index in the chain; those that stay are missing.

    One goes if the node where it belongs was lost and it shares one with a process that belongs elsewhere. Those that
    were together stay so, as far as a node takes them; each set gets a node of its own, the largest set first.

    Args:
        needs: of every process, in chain order.
        homes: the node where each belongs.
        now: the node where each is.
        alive: the nodes that there are.
        rooms: what the nodes that hold none of the processes have left.
    """
    sets: dict[str, list[int]] = {}
    for index in sorted(homes.keys() & now.keys()):
        if homes[index] not in alive:
            sets.setdefault(homes[index], []).append(index)
    found: dict[int, str] = {}
    for together in sorted(sets.values(), key=lambda some: -sum(needs[index].amounts["CPU"] for index in some)):
        crowded = [index for index in together if _has_strangers(index, homes, {**now, **found})]
        free = {node: _taken(crowded, needs, room) for node, room in rooms.items() if node not in found.values()}
        if free:
            best = max(free, key=lambda node: len(free[node]))
            found |= dict.fromkeys(free[best], best)
    return found


def _has_strangers(index: int, homes: Mapping[int, str], now: Mapping[int, str]) -> bool:
    """Whether a process shares its node with one that belongs elsewhere."""
    return any(node == now[index] and homes.get(other) != homes[index] for other, node in now.items())


def _taken(indices: Sequence[int], needs: Sequence[Need], room: Room) -> list[int]:
    """Return as many processes as a node has room for, in chain order."""
    left, taken = dict(room.free), []
    for index in indices:
        amounts = needs[index].amounts
        if matches(room.labels, needs[index].labels) and all(
            left.get(name, 0.0) + A_BIT >= amount for name, amount in amounts.items()
        ):
            left |= {name: left.get(name, 0.0) - amount for name, amount in amounts.items()}
            taken.append(index)
    return taken


def matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Return whether a node's labels are as a selector says: `a`, `!a`, `in(a, b)` or `!in(a, b)` per key."""
    return all(_is_as(labels.get(key), value) for key, value in wanted.items())


def _is_as(label: str | None, value: str) -> bool:
    plain = value.removeprefix("!")
    listed = plain.removeprefix("in(").removesuffix(")").split(",") if plain.startswith("in(") else [plain]
    return (label in [one.strip() for one in listed]) is not value.startswith("!")
