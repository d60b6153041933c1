"""Makes sure that a block never writes to what it receives: other actors read the same memory."""

from __future__ import annotations

import copy

import torch
from torch import nn

from actors.draws import forked_draws
from actors.networks.body import Body


def keep_input_intact(body: Body, shape: tuple[int, ...]) -> bool:
    """Find out whether a body writes to its input, and prevent it.

    Layers with an `inplace` switch are switched one after another until the input stays as it is; where
    that does not help, the body copies its input. Weights, statistics and random state don't change.

    Args:
        body: the block's layers.
        shape: shape of one input sample.

    Returns:
        Whether something had to be changed.
    """
    if not _writes(body, shape):
        return False
    switched = [module for module in body.modules() if getattr(module, "inplace", False)]
    for module in switched:
        module.inplace = False  # type: ignore[assignment]
        if not _writes(body, shape):
            return True
    for module in switched:
        module.inplace = True  # type: ignore[assignment]
    body.clones_input = True
    return True


def _writes(body: nn.Module, shape: tuple[int, ...]) -> bool:
    with forked_draws(), torch.no_grad():
        for training in (True, False):
            probe = copy.deepcopy(body).train(training)
            x = torch.randn(2, *shape)
            before = x.clone()
            count = x._version  # every view of x shares this count of in-place writes; x.data does not count
            probe(x)
            if x._version != count or not torch.equal(x, before):
                return True
    return False
