import gzip
import pickle
import random
import struct
import subprocess
import sys
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from actors.datasets import DataSpec, EvalBatches, Split, TrainBatches, dataset_names, load_data
from actors.datasets.augmentations import Augmentation
from actors.datasets.fashion_mnist import DEBIAN_FOLDER
from actors.datasets.idx import has_idx_files, read_idx
from actors.errors import UserError
from actors.seeds import seed_of

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


def test_seeds_are_stable_and_tell_types_and_places_apart():
    assert seed_of("order", 7, 3) == 1649928362604272725
    assert len({seed_of(1), seed_of("1"), seed_of("ab"), seed_of("a", "b"), seed_of("b", "a"), seed_of()}) == 6
    assert all(0 <= seed_of(part) < 2**63 for part in range(1000))
    assert seed_of(np.int64(-3), "ü") == seed_of(-3, "ü")
    with pytest.raises(TypeError):
        seed_of(1.5)


def test_every_dataset_file_is_found_by_listing_the_folder():
    assert dataset_names() == ["cifar10", "digits", "fashion_mnist", "generated", "image_folder", "mnist"]


def test_importing_the_package_brings_in_neither_ray_nor_scikit_learn_nor_torchvision():
    code = (
        "import sys, actors.datasets as d; d.load_data(d.DataSpec(name='generated', batch_size=2)); "
        "assert not {'ray', 'sklearn', 'torchvision', 'orchestrator'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


@pytest.mark.parametrize("augment", [False, ["crop:2", "flip", "erase:3", "RandomVerticalFlip"]])
def test_any_batch_can_be_made_alone_and_any_stream_can_start_anywhere(augment):
    spec = small(augment=augment, seed=3)
    data = load_data(spec)
    batches = TrainBatches(data, spec, epochs=2)
    whole = list(batches.stream(0))
    assert [batch.batch_id for batch in whole] == list(range(batches.num_batches))
    assert all(same(batches.batch(i), whole[i]) for i in reversed(range(batches.num_batches)))
    assert all_same(batches.stream(9), whole[9:])
    assert all_same(TrainBatches(load_data(spec), spec, epochs=2).stream(), whole)


def test_another_seed_gives_another_order_and_other_augmentation():
    data = load_data(small())
    one, other = (TrainBatches(data, small(seed=seed), epochs=1).batch(0) for seed in (0, 1))
    assert not torch.equal(one.sample_ids, other.sample_ids)
    images = torch.rand(64, 1, 6, 6)
    assert not torch.equal(Augmentation(["crop:2"])(images, 0), Augmentation(["crop:2"])(images, 1))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_two_workers_give_the_same_bits_as_none(tmp_path):
    write_image_folder(tmp_path, images=5)
    spec = DataSpec(
        name="image_folder",
        root=str(tmp_path),
        options={"image_size": 12},
        batch_size=3,
        augment=["crop:2", "flip", "ColorJitter:0.4"],
    )
    data = load_data(spec)
    alone = list(TrainBatches(data, spec, epochs=2).stream(2))
    before = torch.get_rng_state()
    helped = list(TrainBatches(data, replace(spec, workers=2), epochs=2).stream(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(alone) == 6 and all_same(alone, helped)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_bad_sample_met_by_a_worker_is_still_one_sentence(tmp_path):
    write_image_folder(tmp_path)
    (tmp_path / "train" / "dog" / "0.png").write_bytes(b"no picture")
    spec = DataSpec(name="image_folder", root=str(tmp_path), batch_size=4, workers=1)
    with pytest.raises(UserError, match=r"^data\.root .*train: sample 2 of the train split is Unident.*dataset\.$"):
        list(TrainBatches(load_data(spec), spec, epochs=1).stream())


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_a_dataset_that_cannot_be_pickled_is_refused_by_its_workers():
    split = Split("train", 2, "here", dataset=ListedDataset([lambda: None]))
    with pytest.raises(UserError, match=r"^data\.workers: got 1, but the dataset cannot be sent"):
        list(EvalBatches(split, 1, workers=1))


def test_an_epoch_holds_every_sample_once_and_keeps_its_small_last_batch():
    spec = small(batch_size=16)
    batches = TrainBatches(load_data(spec), spec, epochs=2)
    assert (batches.batches_per_epoch, batches.num_batches, batches.last_batch_size) == (4, 8, 2)
    sizes = [len(batch.labels) for batch in batches.stream()]
    assert sizes == [16, 16, 16, 2] * 2
    epochs = [torch.cat([batches.batch(4 * epoch + i).sample_ids for i in range(4)]) for epoch in (0, 1)]
    assert all(sorted(epoch.tolist()) == list(range(50)) for epoch in epochs)
    assert not torch.equal(*epochs)
    for outside in (-1, 8):
        with pytest.raises(IndexError):
            batches.batch(outside)


def test_a_batch_has_the_promised_types_and_pairs_inputs_with_their_labels():
    spec = small()
    data = load_data(spec)
    batch = TrainBatches(data, spec, epochs=1).batch(1)
    assert batch.inputs.shape == (8, 1, 6, 6) and batch.inputs.is_contiguous()
    assert (batch.inputs.dtype, batch.labels.dtype, batch.sample_ids.dtype) == (
        torch.float32,
        torch.int64,
        torch.int64,
    )
    assert torch.equal(batch.inputs, data.train.inputs[batch.sample_ids])
    assert torch.equal(batch.labels, data.train.labels[batch.sample_ids])


def test_a_batch_is_a_copy_so_changing_it_leaves_the_data_alone():
    spec = small()
    batches = TrainBatches(load_data(spec), spec, epochs=1)
    before = batches.batch(0).inputs.clone()
    batches.batch(0).inputs.zero_()
    assert torch.equal(batches.batch(0).inputs, before)


@pytest.mark.parametrize(("validation", "held_out"), [(0.2, 8), (10, 10), (10.0, 10), (0.001, 1)])
def test_validation_is_held_out_of_what_the_limit_left(validation, held_out):
    data = load_data(small(limit=40, validation=validation))
    train, held = set(data.train.sample_ids.tolist()), set(data.validation.sample_ids.tolist())
    assert (len(data.train), len(data.validation), len(data.test)) == (40 - held_out, held_out, 20)
    assert not train & held
    assert train | held == set(load_data(small(limit=40)).train.sample_ids.tolist())


def test_a_limit_nests_and_one_above_the_data_changes_nothing():
    chosen = [set(load_data(small(limit=limit)).train.sample_ids.tolist()) for limit in (10, 20, 500)]
    assert chosen[0] < chosen[1] < chosen[2] == set(range(50))
    assert load_data(small()).validation is None


def test_loading_and_streaming_leave_every_global_generator_as_it_was():
    spec = user("make_noisy", augment=["crop:1", "flip", "RandomVerticalFlip"], validation=2)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    data = load_data(spec)
    list(TrainBatches(data, spec, epochs=2).stream())
    list(EvalBatches(data.validation, 2))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all() and states[2] == random.getstate()


def test_a_dataset_that_draws_from_global_generators_is_deterministic_all_the_same():
    spec = user("make_noisy")
    batches = TrainBatches(load_data(spec), spec, epochs=2)
    whole = list(batches.stream())
    torch.rand(3)
    assert all(same(batches.batch(i), whole[i]) for i in (7, 0, 3))
    assert not torch.equal(whole[0].inputs.frac(), whole[1].inputs.frac())


def test_evaluation_batches_come_in_order_and_repeat():
    data = load_data(small(augment=["flip"]))
    batches = EvalBatches(data.test, 8)
    assert len(batches) == batches.num_batches == 3
    one, other = list(batches), list(batches)
    assert all_same(one, other) and same(batches.batch(2), one[2])
    assert torch.cat([batch.sample_ids for batch in one]).tolist() == list(range(20))
    assert torch.equal(torch.cat([batch.inputs for batch in one]), data.test.inputs)


def test_crop_flip_and_erase_draw_for_each_sample():
    images = torch.arange(1, 37, dtype=torch.uint8).view(1, 1, 6, 6).repeat(64, 2, 1, 1)
    for name in ("crop:2", "flip", "erase:3"):
        changed = Augmentation([name])(images, 5)
        assert changed.shape == images.shape and changed.dtype == torch.uint8
        assert len(changed.unique(dim=0)) > 1
        assert torch.equal(changed[:, 0], changed[:, 1]), "channels move together"
        assert torch.equal(changed, Augmentation([name])(images, 5))


def test_a_crop_is_a_shift_with_black_coming_in():
    images = torch.rand(40, 1, 6, 6) + 1
    padded = torch.nn.functional.pad(images, [1] * 4)
    for before, after in zip(padded, Augmentation(["crop:1"])(images, 2), strict=True):
        windows = [before[:, y : y + 6, x : x + 6] for y in range(3) for x in range(3)]
        assert sum(torch.equal(after, window) for window in windows) == 1


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (["crops"], r"data\.augment: got 'crops', expected crop:PIXELS"),
        (["crop:x"], r"data\.augment: got 'crop:x'"),
        (["Normalize"], r"data\.augment: 'Normalize' cannot be made"),
        (["RandomRotation:x"], r"data\.augment: 'RandomRotation:x' cannot be made"),
        ("flip", r"data\.augment: got 'flip', expected true, false or a list"),
        (True, r"data\.augment: got true, but generated has no default"),
    ],
)
def test_an_augmentation_that_does_not_exist_is_refused_at_the_start(augment, message):
    spec = small(augment=augment)
    with pytest.raises(UserError, match=message):
        TrainBatches(load_data(spec), spec, epochs=1)


def test_an_augmentation_that_changes_the_shape_is_refused():
    spec = small(augment=["CenterCrop:4"])
    with pytest.raises(UserError, match=r"data\.augment: CenterCrop:4 turned"):
        TrainBatches(load_data(spec), spec, epochs=1).batch(0)


def test_digits_are_split_once_and_for_all_with_balanced_classes():
    spec = DataSpec(name="digits", augment=True)
    data = load_data(spec)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert (data.num_classes, data.input_shape) == (10, (1, 8, 8))
    for split in (data.train, data.test):
        shares = torch.bincount(split.labels, minlength=10) / len(split)
        assert shares.min() > 0.09 and shares.max() < 0.11
    assert torch.cat([data.train.inputs, data.test.inputs]).flatten(1).unique(dim=0).shape[0] == 1797
    assert torch.equal(data.test.labels, load_data(DataSpec(name="digits", seed=9)).test.labels)
    seen = data.train.normalise(data.train.inputs)
    assert abs(seen.mean()) < 0.02 and abs(seen.std() - 1) < 0.02
    assert TrainBatches(data, spec, epochs=1).batch(0).inputs.shape == (128, 1, 8, 8)


def test_the_generated_set_is_learnt_by_a_linear_probe():
    data = load_data(DataSpec(name="generated"))
    features, targets = data.train.inputs.flatten(1), torch.eye(10)[data.train.labels]
    weights = torch.linalg.lstsq(features, targets).solution
    right = (data.test.inputs.flatten(1) @ weights).argmax(1) == data.test.labels
    assert right.float().mean() > 0.6
    assert abs(data.train.inputs.std() - 1) < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": 5}, r"data\.options\.shape: got 5"),
        ({"shape": (1, 0, 3)}, r"data\.options\.shape: got"),
        ({"classes": 0}, r"data\.options\.classes: got 0"),
        ({"noise": -1}, r"data\.options\.noise: got -1"),
        ({"colour": 1}, r"data\.options\.colour: got an option that generated does not have"),
    ],
)
def test_options_that_make_no_dataset_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        load_data(DataSpec(name="generated", options=options))


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
        (f"{__name__}:make_without_train", r"data\.factory: .*make_without_train takes \(\)"),
        (f"{__name__}:make_dict", r"data\.factory: .*make_dict returned dict, expected a map-style dataset"),
        (
            f"{__name__}:make_unlabelled",
            r"data\.factory .*sample 0 of the train split is Tensor, expected a pair",
        ),
        (f"{__name__}:make_pil", r"data\.factory: .*make_pil takes \(train, root\)"),
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
