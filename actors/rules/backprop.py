"""Back-propagation between actors: exact gradients of the losses within reach (Rumelhart et al. 1986)."""

from __future__ import annotations

from actors.reach import ReachConfig, ReachRule


class Backprop(ReachRule):
    """Each block receives exact gradients from the next block; by default of the last loss, fully locked."""

    paper = "Rumelhart, Hinton, Williams 1986, doi:10.1038/323533a0"

    class Config(ReachConfig):
        """Which losses train a block."""
