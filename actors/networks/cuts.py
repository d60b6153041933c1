"""Where a network is cut into blocks. Pure: names only."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence

from actors.errors import UserError


def cut_layers(names: Sequence[str], blocks: int | None, cuts: Sequence[str] | None) -> list[list[str]]:
    """Return the layer names of every block, first to last.

    Args:
        names: the network's layers in order.
        blocks: how many blocks; sizes differ by at most one, and the first block has the smaller.
        cuts: names of the layers that each start a new block; takes the place of `blocks`.

    Raises:
        UserError: the network can't be cut so.
    """
    starts = list(cuts) if cuts is not None else even_cuts(names, 1 if blocks is None else blocks)
    if cuts is not None and blocks is not None and blocks != len(starts) + 1:
        raise UserError(
            f"network.blocks: got {blocks} beside {len(starts)} network.cuts, which make {len(starts) + 1} "
            f"blocks; leave network.blocks out"
        )
    positions = [_position(names, cut) for cut in starts]
    if any(a >= b for a, b in itertools.pairwise(positions)):
        raise UserError(
            f"network.cuts: got {starts}, expected layers in the network's order, each once; order: {', '.join(names)}"
        )
    bounds = [0, *positions, len(names)]
    return [list(names[a:b]) for a, b in itertools.pairwise(bounds)]


def even_cuts(names: Sequence[str], blocks: int) -> list[str]:
    """Return the layers that start blocks 1, 2, ... of an even cut."""
    if not 1 <= blocks <= len(names):
        raise UserError(
            f"network.blocks: got {blocks}, expected 1 to {len(names)}, the number of layers "
            f"({', '.join(names)}); choose a number in that range"
        )
    return [names[index * len(names) // blocks] for index in range(1, blocks)]


def _position(names: Sequence[str], cut: str) -> int:
    if cut not in names[1:]:
        close = difflib.get_close_matches(cut, names[1:], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
            f"network.cuts: got {cut!r}, expected layers other than the first of {', '.join(names)}; {hint}"
            f"a cut names the first layer of a new block"
        )
    return list(names).index(cut)
