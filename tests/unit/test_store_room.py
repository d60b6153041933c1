"""What is under way on the edges fits into the object store, or the user is told once what is too small."""

import pytest

from orchestrator.message_sizes import sample_bytes
from orchestrator.plan import make_plan
from orchestrator.retention import most_uncovered
from orchestrator.store_room import SHARE, fitted, message_bytes
from tests.runs import Replacing, config_of, run

WIDE = {
    "data": {"batch_size": 64}, "network": Replacing(name="mlp", widths=[1024, 2048], blocks=3),
    "rule": {"name": "backprop"},
}  # fmt: skip


def plan_of(tmp_path, **sections):
    config = config_of(tmp_path / "run", **{**WIDE, **sections})
    return config, make_plan(config)


def test_a_message_is_as_large_as_the_input_of_the_block_above(tmp_path):
    sizes = message_bytes(*plan_of(tmp_path))
    assert sizes["source->block0"] == 4 * 64 * 2 * 8 * 8
    assert sizes["block0->block1"] == 4 * 64 * 1024
    assert {size for edge, size in sizes.items() if "block2" in edge} == {4 * 64 * 2048}


@pytest.mark.parametrize(("votes", "evaluated"), [(True, 5), (False, 1)])
def test_every_stream_of_a_rule_counts_as_what_really_travels(tmp_path, votes, evaluated):
    sections = {"rule": {"name": "forward_forward", "label_votes": votes}, "data": {"batch_size": 16, "test_size": 16}}
    config, plan = plan_of(tmp_path, **sections)
    assert plan.streams == (3, evaluated)
    sizes, samples = message_bytes(config, plan), sample_bytes(plan)["block0->block1"]
    assert sizes["source->block0"] == 4 * 16 * 2 * 8 * 8
    assert sizes["block0->block1"] == 4 * 16 * 1024 * max(3, evaluated)
    got = run(tmp_path / "run", **{**WIDE, **sections}, evaluation={"every_epochs": 0}, training={"epochs": 1})
    edge = next(edge for edge in got.edges if edge["name"] == "block0->block1")
    tensors = 16 * (11 * samples.training + samples.evaluation)
    assert tensors < edge["bytes"] < 1.02 * tensors
    room = 512 * 1024**2 - 16 * (evaluated * 4 * 2048 + 16 + 16)  # labels and votes
    assert most_uncovered(config, plan) == (room - room // 8) // (16 * (3 * 4 * 2048 + 16))


def test_what_a_producer_sends_on_all_its_edges_is_kept(tmp_path):
    """With reach 3 the last block sends its own loss down, the middle one its own and the last one's."""
    config, plan = plan_of(tmp_path, rule={"name": "backprop", "reach": 3, "losses": "every"},
                           network=Replacing(name="mlp", widths=[64, 64], blocks=3), data={"test_size": 4})  # fmt: skip
    kept = 4 * (64 + 2 * 64) + 16  # up to the last block, two gradients down
    room = 512 * 1024**2 - 4 * (4 * 128 + 16 + 16)
    assert most_uncovered(config, plan) == (room - room // 8) // (16 * kept)


@pytest.mark.parametrize("store_bytes", [None, 10**9])
def test_a_large_store_or_none_leaves_the_buffers_alone(tmp_path, store_bytes):
    config, plan = plan_of(tmp_path)
    assert fitted(config, plan, store_bytes) == (config, None)


def test_a_small_store_makes_the_buffers_small_enough_and_the_user_is_told(tmp_path):
    config, plan = plan_of(tmp_path, buffers={"capacity": 16, "window": 4})
    store_bytes = 12 * 10**6
    got, warning = fitted(config, plan, store_bytes)
    large = [size for size in message_bytes(config, plan).values() if size > 100 * 1024]
    assert 1 <= got.buffers.capacity < 16 and got.buffers.window <= got.buffers.capacity
    held = 4 * 64 * 1024  # the middle block's open pass; the first one's input travels in the answer of the call
    assert sum(large) * (2 * got.buffers.capacity + 1) <= SHARE * store_bytes - held
    assert sum(large) * (2 * got.buffers.capacity + 3) > SHARE * store_bytes - held  # and no smaller than that
    assert "placement.object_store_bytes: 12 MB" in warning and f"capacity is {got.buffers.capacity}" in warning


def test_a_store_that_holds_not_even_one_message_an_edge_is_named_and_nothing_is_changed(tmp_path):
    config, plan = plan_of(tmp_path)
    got, warning = fitted(config, plan, 10**6)
    assert got == config and "write some to disk" in warning


def test_where_the_buffer_is_part_of_the_method_it_is_left_alone(tmp_path):
    replay = {"rule": {"name": "local"}, "schedule": {"name": "replay"}, "buffers": {"capacity": 16}}
    config, plan = plan_of(tmp_path, **replay)
    got, warning = fitted(config, plan, 6 * 10**6)
    assert got == config and warning is not None


def test_buffers_that_size_themselves_get_no_more_than_the_store_has(tmp_path):
    config, plan = plan_of(tmp_path, buffers={"mode": "auto"}, rule={"name": "local"})
    got, warning = fitted(config, plan, 12 * 10**6)
    assert got.buffers.budget_bytes == int(SHARE * (12 * 10**6)) and warning is None


def test_what_open_passes_hold_until_their_feedback_comes_is_not_there_for_buffers(tmp_path):
    config, plan = plan_of(tmp_path, buffers={"mode": "auto"}, schedule={"delay_per_hop": 3})
    sizes = message_bytes(config, plan)
    held = 7 * sizes["source->block0"] * (sizes["source->block0"] > 100 * 1024)
    held += (
        4 * sizes["block0->block1"]
    )  # the middle block's loss comes back 1 + 3 batches later, the last one's at once
    got, _ = fitted(config, plan, 12 * 10**6)
    assert got.buffers.budget_bytes == int(SHARE * (12 * 10**6)) - held


@pytest.mark.parametrize(("own", "num_messages"), [({"on_full": "drop_oldest"}, 8), ({}, 1)])
def test_an_edge_whose_consumer_drops_holds_more_than_its_buffer_and_counts_as_that(tmp_path, own, num_messages):
    own = {"capacity": 1, **own}
    config, plan = plan_of(tmp_path, rule={"name": "local"}, schedule={"name": "replay"}, buffers=own)
    sizes = [size for size in message_bytes(config, plan).values() if size > 100 * 1024]
    needed = int(sum(sizes) * (2 * num_messages + 1) / SHARE)
    assert fitted(config, plan, needed + 10) == (config, None)
    assert f"that {num_messages} messages on every edge may put under way" in fitted(config, plan, needed - 10)[1]
