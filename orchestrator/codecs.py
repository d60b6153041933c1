"""Which wire codec each edge has, from the config's `wire`. Pure: no torch, no Ray."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from actors.errors import UserError
from orchestrator.wiring import SOURCE, Edge, Wiring, is_forward

PLAIN = "fp32"
KINDS = ("activation", "feedback")


def edge_codecs(setting: str | Mapping[str, str] | None, wiring: Wiring) -> dict[str, str]:
    """Return the codec of every edge that has one.

    What leaves the source is coded only where its edge is named; an edge's own name is stronger than its kind.

    Args:
        setting: one codec for all edges between blocks, or codecs by kind (`activation`, `feedback`) and by edge.
        wiring: the edges of the run.

    Raises:
        UserError: an edge is named that the run does not have.
    """
    if setting is None:
        return {}
    by_name: dict[str, str] = {}
    by_name |= setting if isinstance(setting, Mapping) else dict.fromkeys(KINDS, setting)
    edges = [edge for edge in wiring.edges if not edge.name.endswith(":done")]
    known = [*KINDS, *(edge.name for edge in edges)]
    for name in by_name:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "choose one of them"
            raise UserError(f"wire: got edge {name!r}, expected one of {', '.join(known)}; {hint}")
    codecs = {edge.name: by_name.get(edge.name, by_name.get(_kind(edge), PLAIN)) for edge in edges}
    return {name: codec for name, codec in codecs.items() if codec != PLAIN}


def _kind(edge: Edge) -> str:
    """Return what an edge carries, as `wire` calls it; the source's edges are of no kind."""
    if edge.producer == SOURCE:
        return SOURCE
    return "activation" if is_forward(edge) else "feedback"
