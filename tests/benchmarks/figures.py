"""Figures of the benchmarks; matplotlib is needed for nothing else, so it is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def draw(
    path: Path, rows: int, columns: int, fill: Callable[[Any], None], *, panel: tuple[float, float] = (4.2, 3.2)
) -> str:
    """Draw a figure into a file and return one sentence about it, also where matplotlib is missing.

    Args:
        path: of the file; its ending says the format.
        rows, columns: of panels.
        fill: called with the panels, an array of [rows, columns] axes.
        panel: width and height of one, in inches.
    """
    try:
        import matplotlib
    except ImportError:
        return f"{path.name} was not drawn: matplotlib is missing; install the development extra, .[dev]"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "svg.fonttype": "none", "svg.hashsalt": path.stem}
    with matplotlib.rc_context(style):
        figure, panels = pyplot.subplots(
            rows, columns, figsize=(panel[0] * columns, panel[1] * rows), squeeze=False, layout="constrained"
        )
        fill(panels)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)
    return f"{path.name} was drawn"
