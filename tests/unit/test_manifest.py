"""Whatever is changed in a manifest is noticed, and what is wrong is said in one sentence."""

import hashlib
import json

import pytest

from actors import shard as shards
from actors.errors import RunError
from actors.shard import stage
from actors.storage import open_storage
from orchestrator.checkpoints import MANIFEST, Checkpoints, newest_checkpoint
from orchestrator.manifest import FORMAT, decoded


@pytest.fixture
def committed(tmp_path):
    """The manifest of a checkpoint at batch 3."""
    storage = open_storage(str(tmp_path))
    file = shards.write_shard(storage, "batch-000000003/block0.7.safetensors", stage({"n": 3}))
    source = {"batch": 11, "orders": 2, "actor": {"outboxes": {"a": {"kept": [1, 2]}}, "rate": 0.1}}
    Checkpoints(storage, "run", cut=[["conv1", "conv2"]]).commit(3, [file], source)
    return tmp_path / "batch-000000003" / MANIFEST


def signed(facts):
    """A manifest with these facts that matches its own hash."""
    digest = hashlib.sha256(json.dumps(facts, indent=1).encode()).hexdigest()
    return json.dumps({**facts, "sha256": digest}, indent=1)


def facts_of(manifest):
    facts = json.loads(manifest.read_text())
    del facts["sha256"]
    return facts


def refused(manifest, reason=""):
    with pytest.raises(RunError, match=rf"batch-000000003.{MANIFEST}: can't be used \(.*{reason}") as caught:
        newest_checkpoint(open_storage(str(manifest.parent.parent)))
    assert "\n" not in str(caught.value)


def test_a_manifest_comes_back_as_it_was_written(committed):
    (found,), damaged = Checkpoints(open_storage(str(committed.parent.parent)), "run").all()
    assert not damaged and not found.damage()
    assert (found.position, found.cut) == (3, (("conv1", "conv2"),))
    assert found.source == {"batch": 11, "orders": 2, "actor": {"outboxes": {"a": {"kept": [1, 2]}}, "rate": 0.1}}


def test_any_bit_that_is_flipped_is_noticed(committed):
    whole = committed.read_bytes()
    assert decoded(whole).position == 3
    for place in range(len(whole)):
        for bit in range(8):
            with pytest.raises(ValueError):
                decoded(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])


def test_a_flip_that_leaves_valid_json_is_named(committed):
    text = committed.read_text()
    committed.write_text(text.replace('"batch": 11', '"batch": 10'))
    refused(committed, "it does not match its own hash")


def test_a_truncated_manifest_is_noticed(committed):
    whole = committed.read_bytes()
    for size in range(len(whole)):
        with pytest.raises(ValueError):
            decoded(whole[:size])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "3", "\x00", '{"format": 3}', "[" * 100_000])
def test_what_is_no_manifest_is_refused_by_name(committed, text):
    committed.write_text(text)
    refused(committed)


@pytest.mark.parametrize("held", [2, 9, None, "3"])
def test_another_format_is_refused(committed, held):
    committed.write_text(signed(facts_of(committed) | {"format": held}))
    refused(committed, f"format {held}, expected {FORMAT}")


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("position", "3", r"position: got '3'"),
        ("position", -1, r"position: got -1"),
        ("position", 4, r"it is of the checkpoint at batch 4"),
        ("run", 5, r"run: got 5"),
        ("cut", ["conv1"], r"cut\.0: got 'conv1'"),
        ("source", [], r"source: got \[\]"),
        ("source", {"orders": "2"}, r"source\.orders: got '2'"),
        ("shards", {}, r"shards: got {}"),
        ("shards", [{"name": "x"}], r"shards\.0\.sha256: got "),
        ("shards", [{"name": 5, "sha256": "0", "num_bytes": 1}], r"shards\.0\.name: got 5"),
        ("shards", [{"name": "x", "sha256": "0", "num_bytes": "1"}], r"shards\.0\.num_bytes: got '1'"),
        ("shards", [{"name": "x", "sha256": "0", "num_bytes": 1, "more": 1}], r"shards\.0\.more: got 1"),
        ("more", 1, r"more: got 1"),
    ],
)
def test_a_field_that_is_not_what_it_must_be_is_named_although_the_hash_fits(committed, key, value, where):
    committed.write_text(signed(facts_of(committed) | {key: value}))
    refused(committed, where)
