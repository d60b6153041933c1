import zlib

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import CorruptMessage, EdgeError
from actors.messages import Flags, Kind, Message, num_bytes
from actors.transport import packet as packets
from actors.transport.packet import MAX_HEADER_BYTES, Opened, Packet, checksum, opened, pack, read_header, unpack


def make_message(**tensors):
    tensors = tensors or {"input": torch.arange(6.0).reshape(2, 3), "labels": torch.tensor([1, 2])}
    return Message(Kind.FEEDBACK, 3, version=2, flags=Flags.LAST, tensors=tensors, sequence=5, incarnation=1)


def make_packet(**tensors):
    return pack(make_message(**tensors), run="run", edge="edge")


def open_packet(packet):
    return unpack(packet, run="run", edge="edge")


def seal(body):
    return body + zlib.crc32(body).to_bytes(4, "little")


def with_fields(packet, **fields):
    """Return the packet with other header fields and a right CRC-32."""
    values = msgpack.unpackb(packet.header[:-4]) | fields
    return Packet(seal(msgpack.packb(values)), packet.buffers)


def with_row(packet, **changes):
    """Return the packet with another first row in its tensor table."""
    names = ("name", "dtype", "shape", "order", "checksum")
    row = dict(zip(names, msgpack.unpackb(packet.header[:-4])["tensors"][0], strict=True))
    rest = msgpack.unpackb(packet.header[:-4])["tensors"][1:]
    return with_fields(packet, tensors=[list((row | changes).values()), *rest])


def test_a_packet_gives_back_the_message_it_was_made_of():
    sent = make_message()
    got = open_packet(make_packet())
    assert got.tensors.keys() == sent.tensors.keys()
    assert all(torch.equal(got.tensors[name], sent.tensors[name]) for name in sent.tensors)
    for field in ("kind", "batch_id", "version", "flags", "split", "sequence", "incarnation"):
        assert getattr(got, field) == getattr(sent, field)


def test_a_packet_opened_where_it_was_received_is_not_opened_again(monkeypatch):
    packet = opened(make_packet(), "edge")
    assert isinstance(packet, Opened)
    assert packet.num_bytes == make_packet().num_bytes
    monkeypatch.setattr(packets, "checksum", lambda buffer: pytest.fail("looked at twice"))
    assert open_packet(packet) is packet.message
    assert torch.equal(packet.message.tensors["input"], make_message().tensors["input"])


@pytest.mark.parametrize("of", ["run", "edge"])
def test_a_packet_opened_where_it_was_received_is_still_refused_by_another_run_or_edge(of):
    names = {"run": "run", "edge": "edge"} | {of: "other"}
    with pytest.raises(CorruptMessage, match=f"expected a message of run '{names['run']}'"):
        unpack(opened(make_packet(), "edge"), **names)


def test_a_corrupt_packet_stays_closed_where_it_was_received():
    packet = make_packet()
    for spoiled in (Packet(packet.header, packet.buffers[::-1]), Packet(packet.header[:-1], packet.buffers)):
        assert opened(spoiled, "edge") is spoiled
        with pytest.raises(CorruptMessage):
            open_packet(spoiled)


def test_a_packet_is_as_large_as_its_tensors():
    assert make_packet().num_bytes == num_bytes(make_message().tensors) == 6 * 4 + 2 * 8


def test_a_dense_tensor_is_not_copied():
    sent = torch.arange(6.0).reshape(2, 3)
    packet = make_packet(x=sent)
    assert packet.buffers[0].ctypes.data == sent.data_ptr()
    assert open_packet(packet).tensors["x"].data_ptr() == sent.data_ptr()
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert make_packet(x=image).buffers[0].ctypes.data == image.data_ptr()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 4), max_size=5),
    dtype=st.sampled_from(sorted(packets._DTYPES.values(), key=str)),
    data=st.data(),
)
def test_any_view_of_any_dtype_survives_bit_equal(shape, dtype, data):
    base = torch.randint(0, 2, [size + 2 for size in shape], dtype=torch.uint8).to(dtype)
    for dim in range(len(shape)):
        start, step = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 5))
        base = base[(slice(None),) * dim + (slice(start, None, step),)]
    sent = base.permute(data.draw(st.permutations(range(base.dim()))))
    got = open_packet(make_packet(x=sent)).tensors["x"]
    assert got.dtype == sent.dtype and got.shape == sent.shape
    assert torch.equal(got, sent)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(position=st.integers(0), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_header_is_found(position, bit):
    packet = make_packet()
    header = bytearray(packet.header)
    header[position % len(header)] ^= 1 << bit
    with pytest.raises(CorruptMessage):
        read_header(bytes(header), "edge")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(size=st.integers(1, 40), position=st.integers(0), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_payload_is_found(size, position, bit):
    packet = make_packet(x=torch.arange(size, dtype=torch.uint8))
    spoiled = np.array(packet.buffers[0])
    spoiled[position % size] ^= 1 << bit
    with pytest.raises(CorruptMessage, match="tensor 'x' has checksum"):
        open_packet(Packet(packet.header, (spoiled,)))


@pytest.mark.parametrize("cut", [1, 4, 8, 24])
def test_a_truncated_buffer_is_refused_even_where_the_lost_bytes_are_zero(cut):
    packet = make_packet(x=torch.zeros(6))
    with pytest.raises(CorruptMessage):
        open_packet(Packet(packet.header, (packet.buffers[0][:-cut],)))


def test_a_lost_or_an_extra_buffer_is_refused():
    packet = make_packet()
    for buffers in (packet.buffers[:1], packet.buffers * 2, ()):
        with pytest.raises(CorruptMessage, match="the header lists 2 tensors"):
            open_packet(Packet(packet.header, buffers))


def test_swapped_buffers_are_refused():
    packet = make_packet()
    with pytest.raises(CorruptMessage, match="checksum"):
        open_packet(Packet(packet.header, packet.buffers[::-1]))


@pytest.mark.parametrize("keep", [0, 1, 4, 5, -1])
def test_a_truncated_header_is_refused(keep):
    with pytest.raises(CorruptMessage):
        read_header(make_packet().header[:keep], "edge")


def test_a_header_above_the_cap_is_refused_even_with_a_right_checksum():
    packet = with_fields(make_packet(), split="x" * MAX_HEADER_BYTES)
    with pytest.raises(CorruptMessage, match=f"expected 5 to {MAX_HEADER_BYTES}"):
        open_packet(packet)


@pytest.mark.parametrize("format", [0, 2, None, "1"])
def test_an_unknown_format_is_refused(format):
    with pytest.raises(CorruptMessage, match="unknown header format"):
        open_packet(with_fields(make_packet(), format=format))


@pytest.mark.parametrize("fields", [{"run": "other"}, {"edge": "other"}])
def test_a_message_of_another_run_or_edge_is_refused(fields):
    with pytest.raises(CorruptMessage, match="other"):
        open_packet(with_fields(make_packet(), **fields))


@pytest.mark.parametrize("field", list(packets._FIELDS))
def test_a_header_field_of_another_type_is_refused(field):
    with pytest.raises(CorruptMessage, match=f"header field '{field}'"):
        open_packet(with_fields(make_packet(), **{field: None}))


def test_an_unknown_kind_is_refused():
    with pytest.raises(CorruptMessage, match="unknown message kind 99"):
        open_packet(with_fields(make_packet(), kind=99))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"hello",
        msgpack.packb([1]),
        msgpack.packb(msgpack.ExtType(1, b"code")),
        msgpack.packb({(1, 2): 3}),
        msgpack.packb(1) * 2,
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\xa2\xff\xff",
    ],
)
def test_a_body_that_pack_did_not_write_is_refused(body):
    with pytest.raises(CorruptMessage):
        read_header(seal(body), "edge")


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "complex64"},
        {"dtype": "float64"},
        {"dtype": "Tensor"},
        {"dtype": ["float32"]},
        {"dtype": None},
        {"shape": [2, 4]},
        {"shape": [-2, -3]},
        {"shape": [2.0, 3]},
        {"shape": ["2", 3]},
        {"shape": 6},
        {"shape": None},
        {"shape": [0, 2**63]},
        {"shape": [2**63, 2**63]},
        {"order": "channels_last"},
        {"order": "column"},
        {"order": None},
        {"name": None},
        {"name": ["x"]},
        {"checksum": 0},
        {"checksum": None},
    ],
    ids=str,
)
def test_a_tensor_table_that_does_not_fit_its_buffers_is_refused(changes):
    with pytest.raises(CorruptMessage):
        open_packet(with_row(make_packet(), **changes))


@pytest.mark.parametrize("row", [None, [], ["x"], ["x", "float32", [2, 3], "contiguous", 0, 0], "xxxxx", 5, {}])
def test_a_row_of_the_tensor_table_that_is_not_five_values_is_refused(row):
    packet = make_packet(x=torch.ones(2, 3))
    with pytest.raises(CorruptMessage):
        open_packet(with_fields(packet, tensors=[row]))


def test_an_empty_shape_with_a_size_that_no_tensor_has_is_refused():
    packet = make_packet(x=torch.empty(0, 3))
    with pytest.raises(CorruptMessage):
        open_packet(with_row(packet, shape=[0, 2**63]))


def test_the_checksum_depends_on_every_byte_and_on_the_length():
    sums = {checksum(np.zeros(size, np.uint8)) for size in range(40)}
    assert len(sums) == 40


def test_a_buffer_of_more_than_the_cap_is_refused(monkeypatch):
    monkeypatch.setattr(packets, "MAX_TENSOR_BYTES", 16)
    with pytest.raises(CorruptMessage, match="has 24 bytes"):
        open_packet(make_packet(x=torch.ones(6)))


def test_a_tensor_that_needs_a_gradient_travels_without_its_graph():
    sent = torch.ones(3, requires_grad=True) * 2
    got = open_packet(make_packet(x=sent)).tensors["x"]
    assert got.grad_fn is None and torch.equal(got, sent.detach())


def test_a_tensor_that_no_reader_accepts_is_refused_before_it_leaves():
    message = Message(Kind.ACTIVATION, 0, tensors={"h": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(EdgeError, match=r"tensor 'h' is torch\.complex64"):
        pack(message, run="run", edge="a->b")


def test_a_small_tensor_keeps_no_memory_of_the_large_one_beside_it():
    """Labels wait in the next outbox until a checkpoint covers them; an activation of shared memory must not."""
    packet = make_packet(h=torch.zeros(64, 1024), labels=torch.arange(64))
    message = open_packet(packet)
    at = {name: (tensor.data_ptr(), buffer.ctypes.data)
          for (name, tensor), buffer in zip(message.tensors.items(), packet.buffers, strict=True)}  # fmt: skip
    assert at["h"][0] == at["h"][1], "a large tensor is not copied"
    assert at["labels"][0] != at["labels"][1] and message.tensors["labels"].equal(torch.arange(64))


def test_what_came_at_another_alignment_is_used_at_that_of_torchs_own_tensors():
    packet = pack(Message(Kind.FEEDBACK, 0, tensors={"g": torch.randn(7, 5)}), run="r", edge="e")
    wanted = packet.buffers[0]
    room = torch.empty(wanted.nbytes + 16, dtype=torch.uint8).numpy()
    moved = room[16:]
    moved[:] = wanted
    got = unpack(Packet(packet.header, (moved,)), run="r", edge="e").tensors["g"]
    assert moved.ctypes.data % 64 == 16 and got.data_ptr() % 64 == 0
    assert got.numpy().tobytes() == wanted.tobytes()
