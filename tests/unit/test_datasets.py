import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.datasets import DataSpec, EvalBatches, Split, TrainBatches, dataset_names, load_data
from actors.datasets.augmentations import Augmentation
from actors.errors import UserError
from actors.seeds import seed_of
from tests.dataset_makers import (
    ListedDataset,
    all_same,
    same,
    small,
    user,
    write_image_folder,
)


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
