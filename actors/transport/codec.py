"""Wire codecs: numbers that travel in fewer bits, and the error that this adds.

`bf16` keeps the range of a float32, `fp16` and `int8` come with a scale per tensor, a power of two: nothing under- or
overflows, the product with it is exact, and what was decoded once is encoded to the same bits again, as happens to
messages that a snapshot holds. Rounding is to the nearest and draws nothing, so every backend gives the same bits.
Integers never change. A tensor that holds a NaN, an infinity or a number near the ends of the range travels as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PLAIN = "fp32"
CODECS: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
"""Codec -> what its numbers travel as; `fp32` leaves every tensor as it is."""

_MOST_INT8 = 127
_FP16_BITS, _FP16_TOP = 11, 15
"""Significant bits of a float16, and the power of two that its largest scaled number stays within."""
_TOO_LARGE = 2.0**127
"""Beside the end of a float32's range rounding up would give an infinity."""
ENCODED = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Encoded:
    """A tensor as it travels: what was sent is nearly `tensor` times `scale`, in `dtype`."""

    tensor: Tensor
    scale: float
    dtype: torch.dtype

    def decoded(self) -> Tensor:
        """Return what the consumer gets, [...] in the dtype and memory format of what was sent."""
        got = self.tensor.to(self.dtype)
        return got if self.scale == 1.0 else got.mul_(self.scale)


def encode(tensor: Tensor, codec: str) -> Encoded | None:
    """Return a tensor [...] as it travels under a codec; None: as it is."""
    if codec == PLAIN or tensor.dtype not in ENCODED or not tensor.numel():
        return None
    low, high = torch.aminmax(tensor.detach())
    largest = max(-float(low), float(high))
    if not math.isfinite(float(low)) or not math.isfinite(float(high)) or largest >= _TOO_LARGE:
        return None
    plain = tensor.detach()
    if codec == "bf16":
        return Encoded(plain.to(torch.bfloat16), 1.0, plain.dtype)
    scale = _scale(largest, codec)
    if scale < torch.finfo(torch.float32).tiny:
        return None
    scaled = plain * (1 / scale)
    return Encoded((scaled.round_() if codec == "int8" else scaled).to(CODECS[codec]), scale, plain.dtype)


def _scale(largest: float, codec: str) -> float:
    """Return the power of two that brings the largest number just within the codec's range."""
    if largest == 0:
        return 1.0
    fraction, exponent = math.frexp(largest)
    if codec == "int8":
        return math.ldexp(1.0, exponent - 7 if fraction * 128 <= _MOST_INT8 else exponent - 6)
    if round(math.ldexp(fraction, _FP16_BITS)) == 2**_FP16_BITS:
        exponent += 1  # it will be rounded up to the next power of two
    return math.ldexp(1.0, exponent - _FP16_TOP)


class WireError:
    """The relative error that a codec adds on an edge, of every `EVERY`th message: |decoded - sent| / |sent|."""

    EVERY = 16

    def __init__(self, codec: str) -> None:
        self.codec = codec
        self.num_messages = 0
        self.mean = self.max = 0.0

    def look(self, sequence: int, tensors: Mapping[str, Tensor]) -> None:
        """Measure a message, if it is due; what travels as it is counts as no error."""
        if self.codec == PLAIN or sequence % self.EVERY:
            return
        error = max((relative_error(tensor, self.codec) for tensor in tensors.values()), default=0.0)
        self.num_messages += 1
        self.mean += (error - self.mean) / self.num_messages
        self.max = max(self.max, error)

    def as_dict(self) -> dict[str, Any]:
        """Return the codec, the mean and the largest relative error, and of how many messages."""
        error = {"mean": self.mean, "max": self.max, "messages": self.num_messages}
        return {"codec": self.codec, "relative_error": error}


def relative_error(tensor: Tensor, codec: str) -> float:
    """Return |decoded - sent| / |sent| of one tensor, both Euclidean; 0 if it travels as it is."""
    encoded = encode(tensor, codec)
    if encoded is None:
        return 0.0
    size = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
    return float(torch.linalg.vector_norm(encoded.decoded() - tensor, dtype=torch.float64)) / size if size else 0.0
