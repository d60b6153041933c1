import pickle
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.datasets import DataSpec, EvalBatches, TrainBatches, load_data
from actors.datasets.fashion_mnist import DEBIAN_FOLDER
from actors.datasets.idx import has_idx_files, read_idx
from actors.errors import UserError
from tests.dataset_makers import (
    ListedDataset,
    small,
    user,
    write_idx,
    write_idx_folder,
    write_image_folder,
)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_is_read_back_as_written(tmp_path, suffix):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / f"a{suffix}", array)
    assert (read_idx(tmp_path / f"a{suffix}", 3) == array).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cut": 1}, r"has 39 bytes, expected 40 for sizes \[2, 3, 4\]"),
        ({"cut": 30}, "has 10 bytes, expected a header of 16"),
        ({"magic": (0, 0, 8, 1)}, "has magic number 00000801, expected 00000803"),
        ({"magic": (0, 0, 13, 3)}, "has magic number 00000d03, expected 00000803"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_torn_or_foreign_idx_file_is_refused(tmp_path, changes, message, suffix):
    write_idx(tmp_path / f"a{suffix}", np.zeros((2, 3, 4), np.uint8), **changes)
    with pytest.raises(UserError, match=message):
        read_idx(tmp_path / f"a{suffix}", 3)


def test_a_torn_gzip_file_is_refused(tmp_path):
    write_idx(tmp_path / "a.gz", np.random.RandomState(0).randint(256, size=(9, 9, 9)).astype(np.uint8))
    (tmp_path / "a.gz").write_bytes((tmp_path / "a.gz").read_bytes()[:200])
    with pytest.raises(UserError, match="expected a readable idx file"):
        read_idx(tmp_path / "a.gz", 3)


@pytest.mark.parametrize(
    ("name", "folder", "suffix"),
    [
        ("fashion_mnist", "", ".gz"),
        ("fashion_mnist", "FashionMNIST/raw", ""),
        ("mnist", "", ""),
        ("mnist", "MNIST/raw", ".gz"),
    ],
)
def test_mnist_and_fashion_mnist_are_read_from_data_root(tmp_path, name, folder, suffix):
    images = write_idx_folder(tmp_path / folder, suffix=suffix)
    spec = DataSpec(name=name, root=str(tmp_path), batch_size=4, augment=True)
    data = load_data(spec)
    assert data.input_shape == (1, 28, 28) and data.train.labels.tolist() == [0, 1, 2, 3, 4, 9]
    assert (data.train.inputs.squeeze(1).numpy() == images).all()
    batch = next(iter(EvalBatches(data.test, 6)))
    (mean,), (std,) = data.test.mean, data.test.std
    assert np.allclose(batch.inputs.squeeze(1).numpy(), (images / 255 - mean) / std, atol=1e-6)
    assert TrainBatches(data, spec, epochs=1).batch(0).inputs.shape == (4, 1, 28, 28)


@pytest.mark.skipif(not has_idx_files(DEBIAN_FOLDER), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_from_debians_folder():
    data = load_data(DataSpec(name="fashion_mnist"))
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert torch.bincount(data.train.labels).tolist() == [6000] * 10
    seen = data.train.normalise(data.train.inputs[:5000])
    assert abs(seen.mean()) < 0.02 and abs(seen.std() - 1) < 0.02


def test_cifar10_is_read_from_data_root(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    pixels = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
    sums = {}
    for name, content in (
        ("data_batch_1", {"data": pixels, "labels": [0, 9, 3, 3]}),
        ("test_batch", {"data": pixels, "labels": [1, 2, 3, 4]}),
        ("batches.meta", {"label_names": list("abcdefghij")}),
    ):
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    for root in (tmp_path, folder):
        data = load_data(DataSpec(name="cifar10", root=str(root), batch_size=2))
        assert (data.train.inputs.reshape(4, -1).numpy() == pixels).all()
        assert data.input_shape == (3, 32, 32) and data.train.labels.tolist() == [0, 9, 3, 3]
    (folder / "test_batch").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"data\.root: got .* intact cifar-10-batches-py"):
        load_data(DataSpec(name="cifar10", root=str(tmp_path), batch_size=2))


def test_a_download_without_a_network_ends_in_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10, MNIST

    nowhere = "http://127.0.0.1:9/"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(MNIST, "mirrors", [nowhere])
    monkeypatch.setattr(CIFAR10, "url", nowhere + CIFAR10.filename)
    for name in ("mnist", "cifar10"):
        with pytest.raises(UserError, match=rf"data\.name: {name} cannot be downloaded from {nowhere}.*data\.root"):
            load_data(DataSpec(name=name))
    assert list((tmp_path / "unlocked" / "data").iterdir()) == []


def test_a_download_is_kept_whole_and_done_once(tmp_path, monkeypatch):
    from actors.datasets.download import downloaded

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def fetch(folder):
        calls.append(folder)
        (Path(folder) / "file").write_text("whole")

    for _ in range(2):
        folder = downloaded("thing", fetch, "http://there", "do this")
        assert (folder / "file").read_text() == "whole"
    assert len(calls) == 1 and [entry.name for entry in folder.parent.iterdir()] == ["thing"]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "image_folder"])
def test_a_missing_root_is_named(tmp_path, name):
    with pytest.raises(UserError, match=r"^data\.root: .*missing.*expected.*; "):
        load_data(DataSpec(name=name, root=str(tmp_path / "missing")))


def test_a_label_outside_the_classes_is_named_with_its_split_and_sample(tmp_path):
    write_idx_folder(tmp_path, labels=(0, 1, 10, 3))
    with pytest.raises(UserError, match=r"sample 2 of the train split has label 10, expected 0\.\.9"):
        load_data(DataSpec(name="mnist", root=str(tmp_path), batch_size=2))


def test_a_label_file_of_another_length_is_refused(tmp_path):
    write_idx_folder(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(5, np.uint8))
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz has 5 labels, expected 6"):
        load_data(DataSpec(name="mnist", root=str(tmp_path), batch_size=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 51}, r"data\.batch_size: got 51, expected at most the 50 training samples"),
        ({"batch_size": 20, "limit": 19}, r"data\.batch_size: got 20, expected at most the 19"),
        ({"batch_size": 0}, r"data\.batch_size: got 0, expected 1 or more"),
        ({"limit": 0}, r"data\.limit: got 0, expected 1 or more"),
        ({"limit": -4}, r"data\.limit: got -4"),
        ({"workers": -1}, r"data\.workers: got -1"),
        ({"validation": 1.5}, r"data\.validation: got 1\.5"),
        ({"validation": -0.1}, r"data\.validation: got -0\.1"),
        ({"validation": float("nan")}, r"data\.validation: got nan"),
        ({"validation": 50}, r"data\.validation: got 50 \(50 samples\), expected fewer than the 50"),
        ({"name": "digit"}, r"data\.name: got 'digit', expected one of .*; did you mean digits\?"),
        ({"name": "batches"}, r"data\.name: got 'batches', expected one of "),
        ({"name": None}, r"data\.name and data\.factory: got None and None, expected exactly one"),
    ],
)
def test_settings_that_cannot_train_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        load_data(small(**changes))
    with pytest.raises(UserError, match=r"training\.epochs: got 0"):
        TrainBatches(load_data(small()), small(), epochs=0)


def test_a_factory_of_pil_images_becomes_scaled_tensors_and_gets_its_root():
    data = load_data(user("make_pil", root="/some/where"))
    assert (data.num_classes, data.input_shape, data.train.dataset.root) == (2, (1, 4, 5), "/some/where")
    (batch,) = EvalBatches(data.train, 3)
    assert batch.inputs[:, 0, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    assert batch.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nowhere", r"data\.factory: got 'nowhere', expected package\.module:function"),
        ("no_such_package.x:f", r"data\.factory: importing no_such_package\.x:f raised ModuleNotFoundError"),
        ("math:no_such", r"data\.factory: importing math:no_such raised AttributeError"),
        ("math:pi", r"data\.factory: math:pi is float, expected a function"),
        ("tests.dataset_makers:make_without_train", r"data\.factory: .*make_without_train takes \(\)"),
        ("tests.dataset_makers:make_dict", r"data\.factory: .*make_dict returned dict, expected a map-style dataset"),
        (
            "tests.dataset_makers:make_unlabelled",
            r"data\.factory .*sample 0 of the train split is Tensor, expected a pair",
        ),
        ("tests.dataset_makers:make_pil", r"data\.factory: .*make_pil takes \(train, root\)"),
    ],
)
def test_a_factory_that_gives_no_dataset_is_refused(factory, message):
    with pytest.raises(UserError, match=message):
        load_data(DataSpec(factory=factory, batch_size=1))


def test_a_factory_must_say_how_many_classes_there_are(monkeypatch):
    monkeypatch.delattr(ListedDataset, "classes")
    with pytest.raises(UserError, match=r"says it has None classes.*data\.options\.classes"):
        load_data(user("make_list"))
    assert load_data(user("make_list", options={"classes": 8})).num_classes == 8


def test_bad_samples_of_a_factory_are_named_when_they_are_read():
    data = load_data(user("make_list"))
    with pytest.raises(UserError, match=r"make_list: sample 2 of the test split has label 7, expected 0\.\.1"):
        list(EvalBatches(data.test, 3))
    data = load_data(user("make_uneven"))
    with pytest.raises(UserError, match=r"sample 2 of the train split is torch\.float32 \[1, 3, 2\], expected"):
        list(EvalBatches(data.train, 3))


def test_an_image_folder_is_resized_cut_square_and_labelled_by_folder(tmp_path):
    write_image_folder(tmp_path, halves=("train", "val"))
    spec = DataSpec(name="image_folder", root=str(tmp_path), batch_size=4, augment=True, options={"image_size": 8})
    data = load_data(spec)
    assert (data.num_classes, data.input_shape) == (2, (3, 8, 8))
    (batch,) = EvalBatches(data.train, 4)
    assert batch.labels.tolist() == [0, 0, 1, 1]
    raw = batch.inputs * torch.tensor(data.train.std).view(3, 1, 1) + torch.tensor(data.train.mean).view(3, 1, 1)
    assert torch.allclose(raw[3, :, 4, 4] * 255, torch.tensor([40.0, 100.0, 7.0]), atol=0.01)
    assert TrainBatches(data, spec, epochs=1).batch(0).inputs.shape == (4, 3, 8, 8)
    assert load_data(DataSpec(name="image_folder", root=str(tmp_path), batch_size=2)).input_shape == (
        3,
        64,
        64,
    )


def test_an_image_folder_whose_halves_disagree_is_refused(tmp_path):
    write_image_folder(tmp_path, halves=("train",))
    write_image_folder(tmp_path, halves=("test",), classes=("cat", "cow"))
    with pytest.raises(UserError, match=r"data\.root: .* do not both have cow, dog, expected the same"):
        load_data(DataSpec(name="image_folder", root=str(tmp_path)))
    with pytest.raises(UserError, match=r"data\.root: got nothing"):
        load_data(DataSpec(name="image_folder"))


def test_an_image_folder_with_an_empty_class_is_refused(tmp_path):
    write_image_folder(tmp_path)
    (tmp_path / "train" / "emu").mkdir()
    (tmp_path / "test" / "emu").mkdir()
    with pytest.raises(UserError, match=r"data\.root: .* cannot be used .*emu"):
        load_data(DataSpec(name="image_folder", root=str(tmp_path)))
