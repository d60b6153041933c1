"""The idx format of MNIST and its relatives: a magic number, big-endian sizes, then bytes; plain or gzipped.
Every byte is accounted for, so a torn download is refused here and not learnt from."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.errors import UserError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """The uint8 array in an idx file; UserError for another type, dimensions or length."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, f"{type(error).__name__}: {error}", "a readable idx file") from error
    magic = bytes((0, 0, UNSIGNED_BYTE, num_dimensions))
    if data[:4] != magic:
        raise _broken(path, f"magic number {data[:4].hex()}", magic.hex())
    header = 4 + 4 * num_dimensions
    if len(data) < header:
        raise _broken(path, f"{len(data)} bytes", f"a header of {header}")
    sizes = struct.unpack(f">{num_dimensions}I", data[4:header])
    expected = header + int(np.prod(sizes, dtype=np.int64))
    if len(data) != expected:
        raise _broken(path, f"{len(data)} bytes", f"{expected} for sizes {list(sizes)}")
    return np.frombuffer(bytearray(data), np.uint8, offset=header).reshape(sizes)


def has_idx_files(folder: Path) -> bool:
    """Whether all four files of a dataset lie in `folder`, plain or gzipped."""
    names = (f"{half}-{kind}" for half in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    return all(_find(folder, name) is not None for name in names)


def read_idx_split(folder: Path, train: bool, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 1, H, W] and labels int64 [N] of a half; UserError if a file is missing or broken."""
    half = "train" if train else "t10k"
    image_file, label_file = (_require(folder, f"{half}-{kind}") for kind in ("images-idx3", "labels-idx1"))
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if images.shape[1:] != shape[1:]:
        raise _broken(image_file, f"images of {list(images.shape[1:])}", f"{list(shape[1:])}")
    if len(images) != len(labels):
        raise _broken(label_file, f"{len(labels)} labels", f"{len(images)}, one for each image")
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).to(torch.int64)


def _find(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}-ubyte.gz", folder / f"{name}-ubyte")
    return next((path for path in candidates if path.is_file()), None)


def _require(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise UserError(f"data.root: {folder} has no {name}-ubyte.gz, expected the four idx files; set data.root.")
    return path


def _broken(path: Path, got: str, expected: str) -> UserError:
    return UserError(f"data.root: {path} has {got}, expected {expected}; delete it and get it again.")
