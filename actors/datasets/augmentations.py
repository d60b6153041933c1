"""Random changes of training images by name. `crop`, `flip` and `erase` draw per sample but work on the whole
batch at once, because torchvision's v2 transforms draw once for a batched tensor; a v2 class name is applied
sample by sample instead. All draws come from the seed given, and no global random state is left changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from actors.datasets.randomness import seeded_globals
from actors.errors import UserError

Change = Callable[[Tensor, Generator], Tensor]


class Augmentation:
    """Applies named changes in order; names are `crop:4`, `flip`, `erase:8`, or a class of torchvision's v2
    transforms with at most one number, such as `TrivialAugmentWide` or `RandomRotation:15`.

    Raises UserError for an unknown name or a number that does not fit it.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._changes = [_change(name) for name in names]

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """images [B, C, H, W] of any type, black = 0, to the same shape and type; a pure function of both."""
        generator = Generator().manual_seed(seed)
        changed = images
        for name, change in zip(self.names, self._changes, strict=True):
            changed = change(changed, generator)
            if changed.shape != images.shape:
                raise UserError(
                    f"data.augment: {name} turned {list(images.shape)} into {list(changed.shape)}, "
                    "expected the same shape; choose another."
                )
        return changed


def crop(padding: int, images: Tensor, generator: Generator) -> Tensor:
    """Each image shifted by up to `padding` pixels each way, black coming in."""
    if padding == 0:
        return images
    batch, height, width = images.shape[0], images.shape[2], images.shape[3]
    top, left = torch.randint(2 * padding + 1, (2, batch), generator=generator)
    windows = pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2P+1, 2P+1, H, W]
    return windows[torch.arange(batch), :, top, left]


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Each image mirrored left to right with probability 1/2."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def erase(size: int, images: Tensor, generator: Generator) -> Tensor:
    """Each image with a black square of `size` pixels, its centre anywhere in the image (cutout)."""
    masks = []
    for extent in (images.shape[2], images.shape[3]):
        start = torch.randint(extent, (len(images), 1), generator=generator) - size // 2
        place = torch.arange(extent)
        masks.append((place >= start) & (place < start + size))  # [B, H], then [B, W]
    return images.masked_fill((masks[0][:, :, None] & masks[1][:, None, :]).unsqueeze(1), 0)


def one_by_one(transform: Callable[[Tensor], Tensor], images: Tensor, generator: Generator) -> Tensor:
    """Each image through a transform that draws from the global random state."""
    with seeded_globals(int(torch.randint(2**62, (), generator=generator))):
        return torch.stack([transform(image) for image in images])


def _change(name: str) -> Change:
    kind, colon, amount = name.partition(":")
    if kind in ("crop", "erase"):
        default = 4 if kind == "crop" else 8
        if colon and not amount.isdecimal():
            raise UserError(f"data.augment: got {name!r}, expected {kind}:PIXELS, such as {kind}:{default}.")
        return partial(crop if kind == "crop" else erase, int(amount) if colon else default)
    if name == "flip":
        return flip
    return _from_torchvision(name, kind, amount)


def _from_torchvision(name: str, kind: str, amount: str) -> Change:
    from torchvision.transforms import v2

    transform_class = getattr(v2, kind, None)
    if not (isinstance(transform_class, type) and issubclass(transform_class, v2.Transform)):
        raise UserError(
            f"data.augment: got {name!r}, expected crop:PIXELS, flip, erase:PIXELS or the name of a class in "
            "torchvision.transforms.v2; correct the name."
        )
    try:
        number = float(amount) if amount else 0.0
        transform = transform_class(*([int(number) if number.is_integer() else number] if amount else []))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"data.augment: {name!r} cannot be made ({error}), expected a torchvision transform "
            "that needs at most one number; choose another, or augment in data.factory."
        ) from error
    return partial(one_by_one, transform)
