"""Bodies with feedback matrices, for tests."""

import torch

from actors.networks.body import Body
from actors.networks.layer import seeded_layer
from actors.nn.feedback_layers import drawn, use_feedback
from actors.rules.feedback_alignment import FixedMatrix
from actors.rules.kolen_pollack import LearnedMatrix
from actors.rules.sign_symmetry import FreshSizes


def fixed(weight, std, generator):
    return FixedMatrix(drawn(weight, std, generator))


def learned(weight, std, generator):
    return LearnedMatrix(drawn(weight, std, generator), learns=True)


def fresh(weight, std, generator):
    return FreshSizes(std)


def body_of(make, matrix=None, seed=0, scale=None):
    body = Body([seeded_layer("layer", make, seed)], seed=seed)
    if matrix is not None:
        use_feedback(body, matrix, scale)
        body.find_draws()
    return body


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.detach().flatten(), b.detach().flatten(), dim=0))
