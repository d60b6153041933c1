"""What every carrier promises about tensors: dtype, shape, order in memory and every bit."""

import pytest
import torch

from actors.messages import Flags, Kind, Message
from actors.transport.outbox import Take
from tests.contract.carriers import Outboxes, RayCarrier, receive, same, until

BIG = 8 * 1024 * 1024
"""float32 elements: 32 MiB."""


def bfloat16_with_nan_bits():
    patterns = [0x7FC0, 0x7F81, -0x7F, -1, 0x7F80, -0x8000, 0x0001, 0x3F80]  # NaNs, infinity, -0, subnormal
    return torch.tensor(patterns, dtype=torch.int16).view(torch.bfloat16)


TENSORS = {
    "an empty batch": lambda: torch.empty(0, 3),
    "an empty image batch": lambda: torch.empty(0, 3, 4, 4).to(memory_format=torch.channels_last),
    "a scalar": lambda: torch.tensor(2.5),
    "float64": lambda: torch.linspace(-1, 1, 7, dtype=torch.float64),
    "float16": lambda: torch.linspace(-1, 1, 7).half(),
    "bfloat16 with NaN bits": bfloat16_with_nan_bits,
    "float32 NaN and infinities": lambda: torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0]),
    "int64 labels": lambda: torch.tensor([0, 9, -100, 2**62, -(2**63)]),
    "uint8 pixels": lambda: torch.arange(255, dtype=torch.uint8).reshape(5, 51),
    "a mask": lambda: torch.tensor([[True, False, True]]),
    "a transposed matrix": lambda: torch.arange(12.0).reshape(3, 4).t(),
    "every second row": lambda: torch.arange(40.0).reshape(10, 4)[::2],
    "one element of a strided vector": lambda: torch.arange(10.0)[3::10],
    "one label of a column": lambda: torch.arange(20).reshape(10, 2)[::10, 1],
    "an expanded row": lambda: torch.arange(3.0).expand(4, 3),
    "a part of a large tensor": lambda: torch.arange(1000.0)[100:107],
    "what needs a gradient": lambda: torch.ones(3, requires_grad=True),
    "five dimensions": lambda: torch.arange(32.0).reshape(2, 2, 2, 2, 2),
}


def send_and_receive(carrier, **tensors):
    producer = carrier.producer()
    assert producer.put(Message(Kind.ACTIVATION, 0, tensors=tensors))
    return receive(producer.inbox())[0].tensors


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives_with_its_dtype_shape_and_bits(carrier, name):
    sent = TENSORS[name]()
    got = send_and_receive(carrier, x=sent)["x"]
    assert same(got, sent.detach())
    assert not got.requires_grad


def test_channels_last_keeps_its_strides(carrier):
    sent = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last)
    got = send_and_receive(carrier, x=sent)["x"]
    assert same(got, sent)
    assert got.stride() == sent.stride()
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_many_tensors_of_one_message_keep_their_names_and_order(carrier):
    sent = {name: make() for name, make in TENSORS.items()}
    got = send_and_receive(carrier, **sent)
    assert list(got) == list(sent)
    assert all(same(got[name], sent[name].detach()) for name in sent)


def test_a_message_keeps_every_field_and_may_have_no_tensor(carrier):
    producer = carrier.producer(incarnation=2)
    sent = Message(Kind.EVALUATION, 17, version=5, flags=Flags.SNAPSHOT | Flags.SPLIT_END, split="test")
    assert producer.put(sent)
    assert receive(producer.inbox())[0] == Message(
        Kind.EVALUATION,
        17,
        version=5,
        flags=Flags.SNAPSHOT | Flags.SPLIT_END,
        tensors={},
        split="test",
        sequence=0,
        incarnation=2,
    )


def test_a_large_tensor_arrives_bit_equal_and_is_counted(carrier):
    sent = torch.arange(BIG, dtype=torch.int32).view(torch.float32)
    producer = carrier.producer(capacity=1)
    assert producer.put(Message(Kind.ACTIVATION, 0, tensors={"x": sent}))
    inbox = producer.inbox()
    got = receive(inbox)[0].tensors["x"]
    assert torch.equal(got.view(torch.int32), sent.view(torch.int32))
    assert inbox.num_bytes == 4 * BIG


@pytest.mark.parametrize("size", [4, 1_000_000])
def test_what_comes_over_ray_is_read_only_whatever_its_size(warm_outboxes, size):
    carrier = RayCarrier(warm_outboxes)
    producer = carrier.producer()
    producer.put(Message(Kind.ACTIVATION, 0, tensors={"x": torch.ones(size)}))
    reply = producer.take()
    carrier.close()
    buffers = [buffer for packet in reply.packets for buffer in packet.buffers]
    assert [buffer.flags.writeable for buffer in buffers] == [False]


def test_in_process_a_received_tensor_is_a_view_of_what_its_producer_made():
    """The parity reference copies nothing: neither end may write to a tensor that is in a message."""
    sent = torch.ones(3, 4)
    outboxes = Outboxes()
    outboxes.open("edge", 1, 0)
    outboxes.put("edge", Message(Kind.ACTIVATION, 0, tensors={"x": sent}), 0.0)
    (packet,) = outboxes.take(Take("edge", (0, 0), -1, -1, 0, 1, 0.0)).packets
    assert packet.buffers[0].ctypes.data == sent.data_ptr()


def test_a_message_that_was_received_outlives_its_edge(carrier):
    producer = carrier.producer(capacity=1)
    sent = torch.randn(64, 1024)
    producer.put(Message(Kind.ACTIVATION, 0, tensors={"x": sent}))
    inbox = producer.inbox(window=1)
    got = receive(inbox)[0].tensors["x"]
    until(lambda: inbox.get(0.05) is None and producer.facts.kept == [])
    producer.renew(incarnation=1)
    assert same(got, sent)
