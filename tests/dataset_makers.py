"""Data sets and folders that the data tests make."""

import gzip
import random
import struct

import numpy as np
import torch
from PIL import Image

from actors.datasets import DataSpec

SMALL = {"size": 50, "test_size": 20, "classes": 5, "shape": (1, 6, 6)}


class Noisy:
    """A map-style dataset whose images are drawn anew at each read, from all three global generators."""

    num_classes = 3

    def __len__(self):
        return 10

    def __getitem__(self, index):
        draw = torch.rand(2, 4, 4) + float(np.random.rand()) + random.random()
        return draw + 10 * index, index % 3


def make_noisy(train):
    return Noisy()


def make_pil(train, root):
    images = [Image.new("L", (5, 4), color=shade) for shade in (0, 51, 255)]
    dataset = ListedDataset(zip(images, [0, 1, 1], strict=True))
    dataset.root = root
    return dataset


def make_list(train):
    return ListedDataset((torch.zeros(1, 2, 2), label) for label in (0, 1, 1 if train else 7))


def make_uneven(train):
    return ListedDataset((torch.zeros(1, size, 2), 0) for size in (2, 2, 3))


def make_dict(train):
    return {"x": 1}


def make_unlabelled(train):
    return ListedDataset([torch.zeros(1, 2, 2)] * 3)


def make_without_train():
    return Noisy()


class ListedDataset(list):
    classes = ("a", "b")


def small(**changes):
    return DataSpec(**{"name": "generated", "options": SMALL, "batch_size": 8, **changes})


def user(function, **changes):
    return DataSpec(factory=f"{__name__}:{function}", **{"batch_size": 2, **changes})


def same(one, other):
    return (
        one.batch_id == other.batch_id
        and torch.equal(one.inputs, other.inputs)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.sample_ids, other.sample_ids)
    )


def all_same(ones, others):
    return all(same(one, other) for one, other in zip(ones, others, strict=True))


def write_idx(path, array, magic=None, cut=0):
    data = bytes(magic or (0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    data = data[: len(data) - cut]
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_idx_folder(folder, labels=(0, 1, 2, 3, 4, 9), suffix=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.arange(len(labels) * 784, dtype=np.uint8).reshape(-1, 28, 28)
    for half in ("train", "t10k"):
        write_idx(folder / f"{half}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{half}-labels-idx1-ubyte{suffix}", np.array(labels, np.uint8))
    return images


def write_image_folder(folder, halves=("train", "test"), classes=("cat", "dog"), images=2):
    for half in halves:
        for number, name in enumerate(classes):
            place = folder / half / name
            place.mkdir(parents=True)
            for index in range(images):
                shade = (40 * index, 100 * number, 7)
                Image.new("RGB", (20 + index, 16), color=shade).save(place / f"{index}.png")
