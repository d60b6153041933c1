"""How alike the samples of a batch are to each other (Nokland & Eidnes 2019, 1901.06656)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MIN_MAPS = 4
"""Feature maps from which each is reduced to its standard deviation: fewer leave nothing after centring."""


def sample_vectors(maps: Tensor) -> Tensor:
    """Return one vector per sample, [B, F]: of feature maps [B, C, H, W] each map's standard deviation.

    Anything else, and maps that are too few or a single pixel, is flattened.
    """
    if maps.dim() == 4 and maps.shape[1] >= MIN_MAPS and maps.shape[2] * maps.shape[3] > 1:
        return maps.float().flatten(2).std(dim=2)
    return maps.float().flatten(1)


def similarity_matrix(vectors: Tensor, *, adjusted: bool = True) -> Tensor:
    """Return the cosines [B, B] of the angles between all rows of `vectors` [B, F], in fp32.

    Args:
        vectors: one row per sample; a row of zeros has similarity 0 to everything.
        adjusted: subtract each row's mean first (adjusted cosine similarity).
    """
    if adjusted:
        vectors = vectors - vectors.mean(dim=1, keepdim=True)
    unit = functional.normalize(vectors, dim=1, eps=1e-8)
    with torch.autocast(vectors.device.type, enabled=False):
        return unit @ unit.T


def label_similarity(labels: Tensor, num_classes: int, *, adjusted: bool = True) -> Tensor:
    """Return the similarity matrix [B, B] of one-hot labels, int64 [B].

    It is 1 within a class; between classes it is 0, or -1 / (num_classes - 1) if adjusted.
    """
    return similarity_matrix(functional.one_hot(labels, num_classes).float(), adjusted=adjusted)
