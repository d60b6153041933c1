"""Wire codecs: which edges have one, what they do to numbers, and what they must leave alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import CorruptMessage, UserError
from actors.messages import Flags, Kind, Message
from actors.needs import Feedback, Needs
from actors.transport.codec import WireError, encode, relative_error
from actors.transport.outbox import Outbox, Take
from actors.transport.packet import Packet, pack, unpack
from orchestrator.codecs import edge_codecs
from orchestrator.wiring import wire

LOSSY = ["bf16", "fp16", "int8"]
WORST = {"bf16": 2.0**-8, "fp16": 2.0**-11, "int8": 1 / 128}
"""Of every number over itself, or for int8 over the largest of its tensor: half a step of rounding."""


def there_and_back(tensor, codec, kind=Kind.ACTIVATION):
    packet = pack(Message(kind, 3, tensors={"h": tensor}), run="r", edge="e", codec=codec)
    return packet, unpack(packet, run="r", edge="e").tensors["h"]


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1.0, 3e4, 1e30])
def test_every_number_comes_back_within_half_a_step_whatever_its_size(codec, size):
    sent = size * torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    packet, got = there_and_back(sent, codec)
    scale = sent.abs() if codec != "int8" else sent.abs().max()
    # fp16: the step of its subnormal numbers is 2^-24, and the largest is scaled to 2^14 or more
    assert ((got - sent).abs() <= WORST[codec] * scale + 2.0**-38 * sent.abs().max()).all()
    assert got.dtype == torch.float32
    assert packet.num_bytes == sent.numel() * (1 if codec == "int8" else 2)


@pytest.mark.parametrize("codec", LOSSY)
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_what_was_decoded_once_is_encoded_to_the_same_bits_again(codec, values):
    once = there_and_back(torch.tensor(values), codec)[1]
    assert torch.equal(there_and_back(once, codec)[1], once)
    assert once.isfinite().all()


@pytest.mark.parametrize("largest", [127.0, 127.5, 128.0 - 2**-17, 64.0, 1.0 - 2**-13, 1.0 - 2**-12])
@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_at_the_edge_of_a_power_of_two_nothing_overflows_and_a_second_time_changes_nothing(codec, largest):
    sent = torch.tensor([largest, -largest, largest * 2.0**-20, largest / 3])
    once = there_and_back(sent, codec)[1]
    assert (once - sent).abs().max() <= largest * WORST[codec]
    assert torch.equal(there_and_back(once, codec)[1], once)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_tensor_that_is_not_finite_travels_as_it_is(codec, bad):
    sent = torch.tensor([0.1, bad, 3.0])
    got = there_and_back(sent, codec)[1]
    assert torch.equal(got.view(torch.int32), sent.view(torch.int32))


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_never_change(codec, dtype):
    labels = torch.tensor([0, 1, 77, 250]).to(dtype)
    got = there_and_back(labels, codec)[1]
    assert got.dtype == dtype and torch.equal(got, labels)


@pytest.mark.parametrize("kind", [Kind.EVALUATION, Kind.DONE])
def test_an_evaluation_is_of_the_network_as_it_is(kind):
    sent = torch.full((3,), 1 / 3)
    assert torch.equal(there_and_back(sent, "int8", kind)[1], sent)


@pytest.mark.parametrize("codec", LOSSY)
def test_feedback_is_coded_in_its_memory_format_too(codec):
    sent = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    got = there_and_back(sent, codec, Kind.FEEDBACK)[1]
    assert got.is_contiguous(memory_format=torch.channels_last) and not torch.equal(got, sent)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("values", [[], [0.0, 0.0], [1e-44], [3.4e38, 1.0]])
def test_empty_zero_and_extreme_tensors_stay_close(codec, values):
    sent = torch.tensor(values)
    got = there_and_back(sent, codec)[1]
    assert got.isfinite().all() and torch.allclose(got, sent, rtol=0, atol=max(values, default=0) / 64 + 1e-40)


def test_fp32_gives_the_same_packet_as_no_codec():
    message = Message(Kind.ACTIVATION, 1, tensors={"h": torch.randn(4, 4), "labels": torch.arange(4)})
    plain, fp32 = (pack(message, run="r", edge="e", **own) for own in ({}, {"codec": "fp32"}))
    assert plain.header == fp32.header
    assert encode(torch.randn(3), "fp32") is None


@pytest.mark.parametrize(("origin", "scale"), [("int64", 1.0), ("float32", 0.0), ("float32", math.inf), ("x", 1.0)])
def test_a_header_with_an_impossible_scale_or_origin_is_refused(origin, scale):
    import zlib

    import msgpack

    packet = pack(Message(Kind.ACTIVATION, 1, tensors={"h": torch.randn(4)}), run="r", edge="e", codec="int8")
    header = msgpack.unpackb(packet.header[:-4])
    header["tensors"][0][5:] = [origin, scale]
    body = msgpack.packb(header)
    with pytest.raises(CorruptMessage, match="the tensor table has a row"):
        unpack(Packet(body + zlib.crc32(body).to_bytes(4, "little"), packet.buffers), run="r", edge="e")


def test_the_error_of_an_edge_is_measured_on_every_sixteenth_message():
    error, sent = WireError("int8"), {"h": torch.tensor([127.0, 0.25]), "labels": torch.arange(3)}
    for sequence in range(33):
        error.look(sequence, sent)
    shown = error.as_dict()["relative_error"]
    assert shown["messages"] == 3
    assert shown["mean"] == pytest.approx(0.25 / math.hypot(127, 0.25)) == shown["max"]


def test_a_snapshot_of_an_edge_brings_back_the_bits_that_its_consumer_would_have_got():
    def outbox():
        return Outbox("r", "e", 4, keep=4, codec="int8")

    first, sent = outbox(), torch.randn(50)
    first.put(Message(Kind.FEEDBACK, 0, tensors={"gradient": sent}))
    again = outbox()
    again.restore(first.state())
    take = Take("e", (0, 0), -1, -1, 0, 1, 0.0)
    got = [unpack(box.take(take).packets[0], run="r", edge="e").tensors["gradient"] for box in (first, again)]
    assert torch.equal(*got) and 0 < relative_error(sent, "int8") < 0.05


NEEDS = [Needs(feedback=Feedback.NEXT_BLOCK, origins=(1,)), Needs(feedback=Feedback.NONE)]


def test_one_codec_is_for_all_edges_between_blocks_and_for_none_of_the_source():
    wiring = wire(NEEDS, schedule="lockstep")
    assert edge_codecs("bf16", wiring) == {"block0->block1": "bf16", "block1->block0:feedback1": "bf16"}
    assert edge_codecs("fp32", wiring) == edge_codecs(None, wiring) == {}


def test_the_name_of_an_edge_is_stronger_than_its_kind():
    wiring = wire(NEEDS, schedule="pipeline")
    given = {"activation": "int8", "feedback": "fp16", "block0->block1": "fp32", "source->block0": "bf16"}
    assert edge_codecs(given, wiring) == {"block1->block0:feedback1": "fp16", "source->block0": "bf16"}


def test_an_edge_that_is_not_there_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"got edge 'block0->block2', .* did you mean 'block0->block1'\?"):
        edge_codecs({"block0->block2": "int8"}, wire(NEEDS, schedule="pipeline"))


def test_flags_and_batch_ids_are_as_they_were():
    message = Message(Kind.ACTIVATION, 5, 4, Flags.SNAPSHOT, {"h": torch.randn(3)})
    got = unpack(pack(message, run="r", edge="e", codec="int8"), run="r", edge="e")
    assert (got.batch_id, got.version, got.flags) == (5, 4, Flags.SNAPSHOT)
