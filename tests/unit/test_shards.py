import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from actors import shard as shards
from actors.errors import RunError
from actors.shard import ShardFile, stage
from actors.state_tree import copied, flatten, unflatten
from actors.storage import open_storage
from orchestrator.checkpoints import MANIFEST, Checkpoints, newest_checkpoint

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def write_shard(folder, name, state):
    return shards.write_shard(open_storage(str(folder)), name, stage(state))


def read_shard(folder, file):
    return shards.read_shard(open_storage(str(folder)), file)


def equal(a, b):
    """Whether two trees hold the same, bit for bit; a tuple equals a list."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return same and torch.equal(
            a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def trained(optimizer, **arguments):
    """Return a small network's optimizer after two steps."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    stepped = optimizer(network.parameters(), **arguments)
    for _ in range(2):
        network(torch.randn(5, 3)).square().sum().backward()
        stepped.step()
    return stepped


def through_json(state):
    tensors, tree = flatten(state)
    return unflatten(copied(tensors), json.loads(json.dumps(tree)))


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [(torch.optim.Adam, {"lr": 0.1}), (torch.optim.AdamW, {"lr": 0.1, "amsgrad": True}),
     (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), (torch.optim.SGD, {"lr": 0.1})],
)  # fmt: skip
def test_an_optimizer_goes_on_the_same_from_its_state_read_back(optimizer, arguments):
    original, copy = trained(optimizer, **arguments), trained(optimizer, **arguments)
    state = through_json(original.state_dict())
    assert equal(state, original.state_dict())
    copy.load_state_dict(state)
    for stepped in (original, copy):
        for parameter in stepped.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        stepped.step()
    assert equal(original.param_groups[0]["params"], copy.param_groups[0]["params"])


def test_a_nested_tree_comes_back():
    tree = {
        "a": {"b/c": torch.arange(3), "": torch.ones(())},
        "list": [1, 2.5, None, True, "text", [torch.zeros(0)]],
        "tuple": (1, torch.tensor(3.0)),
        "by number": {0: {"x": torch.ones(2)}, 7: "y"},
        "empty": {}, "none": [],
        "floats": [0.1, 1e-300, -0.0],
    }  # fmt: skip
    assert equal(through_json(tree), tree)


@pytest.mark.parametrize("tree", [{}, [], None, 3, "x", torch.ones(2)])
def test_the_smallest_trees_come_back(tree):
    assert equal(through_json(tree), tree)


@pytest.mark.parametrize("leaf", [object(), {1, 2}, b"bytes", 1j, torch.float32, torch.device("cpu"), print])
def test_a_leaf_that_is_neither_tensor_nor_json_is_refused_with_its_place(leaf):
    with pytest.raises(TypeError, match=r"state at '/optimizer/1/x' is a \w+, expected a tensor or a JSON value"):
        flatten({"optimizer": [0, {"x": leaf}]})


def test_copies_share_no_memory_with_the_originals_or_with_each_other():
    base = torch.arange(6.0).reshape(2, 3)
    copies = copied({"whole": base, "again": base, "turned": base.T})
    expected = base.clone()
    base.zero_()
    copies["again"].fill_(9)
    assert torch.equal(copies["whole"], expected) and torch.equal(copies["turned"], expected.T)
    assert copies["turned"].is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (2, 3, 4)])
def test_a_tensor_of_any_type_and_shape_comes_back_from_disk(tmp_path, dtype, shape):
    torch.manual_seed(1)
    tensor = (torch.randn(shape) * 100).to(dtype)
    file = write_shard(tmp_path, "block0.safetensors", {"t": tensor})
    assert equal(read_shard(tmp_path, file), {"t": tensor})


def test_special_numbers_and_strided_tensors_come_back_bit_for_bit(tmp_path):
    special = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {"special": special, "image": image, "turned": torch.randn(3, 2).T, "shared": [special, special]}
    assert equal(read_shard(tmp_path, write_shard(tmp_path, "s", state)), state)


def test_a_whole_block_comes_back_from_disk(tmp_path):
    state = {
        "body": {"conv.weight": torch.randn(2, 2), "norm.num_batches_tracked": torch.tensor(4)},
        "optimizers": {"body": trained(torch.optim.Adam, lr=0.1).state_dict()},
        "version": 17, "streams": {"data": [1, 2]},
    }  # fmt: skip
    file = write_shard(tmp_path / "new" / "folder", "block0.safetensors", state)
    assert equal(read_shard(tmp_path / "new" / "folder", file), state)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["block0.safetensors"]
    assert file.num_bytes == (tmp_path / "new" / "folder" / file.name).stat().st_size


def test_the_same_state_has_the_same_hash(tmp_path):
    state = {"t": torch.arange(4.0), "n": 3}
    assert write_shard(tmp_path, "a", state).sha256 == write_shard(tmp_path, "b", state).sha256


def shard(tmp_path):
    return write_shard(tmp_path, "block0.safetensors", {"t": torch.arange(100.0), "n": 3})


def refused(tmp_path, file, *fragments):
    with pytest.raises(RunError) as caught:
        read_shard(tmp_path, file)
    for fragment in (file.name, *fragments):
        assert fragment in str(caught.value)


def test_a_truncated_shard_is_refused(tmp_path):
    file = shard(tmp_path)
    path = tmp_path / file.name
    whole = path.read_bytes()
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(tmp_path, file, "damaged")


def test_a_shard_with_one_bit_flipped_is_refused(tmp_path):
    file = shard(tmp_path)
    path = tmp_path / file.name
    whole = path.read_bytes()
    for place in (0, 12, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(tmp_path, file, "damaged")


def test_a_missing_shard_is_refused(tmp_path):
    refused(tmp_path, ShardFile("block1.safetensors", "0" * 64, 3), "can't be read", "No such file")


@pytest.mark.parametrize("name", ["../block0.safetensors", "a/../../block0.safetensors", "{outside}"])
def test_a_shard_outside_its_folder_is_refused_although_its_hash_fits(tmp_path, name):
    outside = shard(tmp_path)
    (tmp_path / "folder" / "a").mkdir(parents=True)
    name = name.format(outside=tmp_path / outside.name)
    assert (tmp_path / "folder" / name).resolve() == tmp_path / outside.name
    with pytest.raises(RunError, match="expected a name inside the checkpoints' folder; the manifest is refused"):
        read_shard(tmp_path / "folder", replace(outside, name=name))


@pytest.mark.parametrize("name", ["..", "../", "/"])
def test_a_folder_outside_is_refused_as_a_shard(tmp_path, name):
    with pytest.raises(RunError, match="expected a name inside the checkpoints' folder"):
        read_shard(tmp_path, ShardFile(name, "0" * 64, 6))


def test_a_file_that_is_no_snapshot_is_refused_although_its_hash_fits(tmp_path):
    import hashlib

    from safetensors.torch import save

    for data in (b"not safetensors", save({"t": torch.ones(2)}), save({"t": torch.ones(2)}, {"state": "{"})):
        (tmp_path / "block0").write_bytes(data)
        refused(tmp_path, ShardFile("block0", hashlib.sha256(data).hexdigest(), len(data)), "not a snapshot")


def test_a_manifest_that_belongs_to_another_shard_is_refused(tmp_path):
    file = shard(tmp_path)
    refused(tmp_path, replace(file, sha256="0" * 64), "damaged")
    refused(tmp_path, replace(file, num_bytes=file.num_bytes + 1), "damaged")


def committed(folder, position, value, run="run"):
    file = write_shard(folder, f"batch-{position:09d}/block0.7.safetensors", {"n": value})
    return Checkpoints(open_storage(str(folder)), run).commit(position, [file], {"batch": position, "orders": 2})


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    """A folder on disk, or an address that only fsspec knows."""
    if request.param == "local":
        return str(tmp_path)
    return f"memory://{tmp_path.name}-{request.node.name.replace('[', '-').replace(']', '')}"


def test_the_newest_checkpoint_is_the_committed_one_with_the_highest_position(place):
    for position in (9, 100, 20):
        committed(place, position, position)
    write_shard(place, "batch-000000500/block0.7.safetensors", {"n": 500})  # never committed
    open_storage(place).write(f"batch-000000600/.{MANIFEST}.partial", b"{")
    found = newest_checkpoint(open_storage(place))[0]
    assert (found.position, found.read(0), len(found.shards)) == (100, {"n": 100}, 1)
    assert found.source == {"batch": 100, "orders": 2}


def test_a_checkpoint_with_a_damaged_shard_is_named_and_the_one_before_it_is_used(place):
    storage = open_storage(place)
    for position in (3, 5):
        committed(place, position, position)
    name = "batch-000000005/block0.7.safetensors"
    storage.write(name, storage.read(name)[:-1])
    assert "damaged" in Checkpoints(storage, "run").all()[0][-1].damage()[0]
    assert newest_checkpoint(storage)[0].position == 3


def test_a_shard_that_was_not_written_as_told_is_never_committed(place):
    file = write_shard(place, "batch-000000005/block0.7.safetensors", {"n": 1})
    with pytest.raises(RunError, match="damaged"):
        Checkpoints(open_storage(place), "run").commit(5, [replace(file, sha256="0" * 64)], {})
    with pytest.raises(RunError, match="holds no committed checkpoint"):
        newest_checkpoint(open_storage(place))


def test_only_the_newest_stay_and_what_was_never_committed_before_them_goes(place):
    storage = open_storage(place)
    for position in (3, 5, 7):
        committed(place, position, position)
    write_shard(place, "batch-000000004/block0.7.safetensors", {"n": 4})
    write_shard(place, "batch-000000009/block0.7.safetensors", {"n": 9})
    Checkpoints(storage, "run").prune(2, 7)
    assert storage.folders() == ["batch-000000005", "batch-000000007", "batch-000000009"]


def spoil(storage, position):
    name = f"batch-{position:09d}/block0.7.safetensors"
    storage.write(name, storage.read(name)[:-1])


def test_a_damaged_checkpoint_after_the_newest_costs_no_other_its_place(place):
    """A run that had to go back to 7, and commits where it did not before."""
    storage = open_storage(place)
    for position in (7, 11):
        committed(place, position, position)
    spoil(storage, 11)
    checkpoints = Checkpoints(storage, "run")
    file = write_shard(place, "batch-000000009/block0.8.safetensors", {"n": 9})
    checkpoints.commit(9, [file], {"orders": 2})
    checkpoints.prune(1, 9)
    assert storage.folders() == ["batch-000000009", "batch-000000011"]
    assert newest_checkpoint(storage)[0].position == 9


def test_a_damaged_checkpoint_takes_the_place_of_no_good_one(place):
    storage = open_storage(place)
    for position in (2, 3, 5, 7):
        committed(place, position, position)
    spoil(storage, 5)
    Checkpoints(storage, "run").prune(2, 7)
    assert storage.folders() == ["batch-000000003", "batch-000000005", "batch-000000007"]


def test_where_a_run_was_stopped_the_checkpoint_to_go_on_from_stays_beside_the_last(place):
    storage = open_storage(place)
    for position, orders in ((3, 2), (5, 2), (6, 3)):
        file = write_shard(place, f"batch-{position:09d}/block0.7.safetensors", {"n": position})
        Checkpoints(storage, "run").commit(position, [file], {"orders": orders})
    Checkpoints(storage, "run").prune(1, 6)
    assert [c.position for c in Checkpoints(storage, "run").all()[0]] == [5, 6]
    point = Checkpoints(storage, "run").resume_point(is_finished=False)
    assert point.checkpoint is not None and point.checkpoint.position == 5 and not point.notes


def test_where_only_the_end_of_training_was_committed_a_run_begins_again_and_says_so(place):
    file = write_shard(place, "batch-000000006/block0.7.safetensors", {"n": 6})
    checkpoints = Checkpoints(open_storage(place), "run")
    checkpoints.commit(6, [file], {"orders": 3})
    point = checkpoints.resume_point(is_finished=False)
    assert point.checkpoint is None and "only the checkpoint at batch 6 verifies" in point.notes[0]
    assert "begins again at its first batch" in point.notes[0]
    more = checkpoints.resume_point(is_finished=True)
    assert more.checkpoint is not None and more.checkpoint.position == 6 and more.goes_on and not more.notes


def test_where_nothing_was_ever_committed_a_run_begins_again_and_says_so(place):
    write_shard(place, "batch-000000004/block0.7.safetensors", {"n": 4})
    point = Checkpoints(open_storage(place), "run").resume_point(is_finished=False)
    assert point.checkpoint is None and "batch-000000004: has no manifest" in point.notes[0]
    assert "no checkpoint verifies; the run begins again" in point.notes[1]


def test_a_manifest_of_another_run_is_not_used(tmp_path):
    committed(tmp_path, 3, 3, run="other")
    checkpoints = Checkpoints(open_storage(str(tmp_path)), "run")
    assert checkpoints.newest()[0] is None and "of run other" in checkpoints.all()[1][0]


def test_where_no_checkpoint_is_committed_one_is_asked_for(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match="holds no committed checkpoint"):
            newest_checkpoint(open_storage(str(folder)))
