"""Messages in an outbox: when they are packed, what stays on its device, and what is opened beside the program."""

import threading

import pytest
import torch

from actors.errors import EdgeError
from actors.messages import Kind, Message, num_bytes
from actors.transport.faulty import Fault, FaultyPort
from actors.transport.in_process import InProcessPort
from actors.transport.inbox import Inbox
from actors.transport.outbox import Outbox, Take
from actors.transport.parcel import Parcel
from actors.transport.same_process import SameProcessPort
from actors.transport.staging import Entrance, begin_leaving, entrance_to

WIDTH = 40


def message(batch, device="cpu"):
    numbers = torch.arange(batch, batch + WIDTH, dtype=torch.float32)
    return Message(Kind.ACTIVATION, batch, tensors={"h": numbers.to(device), "labels": torch.tensor([batch])})


def parcel(sent, **settings):
    return Parcel(sent, run="r", edge="e", **settings)


def filled(count, device="cpu"):
    outbox = Outbox("r", "e", count)
    for batch in range(count):
        assert outbox.put(message(batch, device))
    return outbox


def take_all(outbox):
    return outbox.take(Take("e", (0, 0), -1, -1, 0, outbox.num_sent, 0.0))


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_a_parcel_says_how_many_bytes_will_travel_before_it_is_packed(codec):
    made = parcel(message(3), codec=codec)
    before = made.num_bytes
    assert made.packet().num_bytes == before == made.num_bytes
    assert made.packet() is made.packet()


def test_the_thread_that_takes_packs(monkeypatch):
    packed_in = []
    real = Parcel.packet
    monkeypatch.setattr(
        Parcel, "packet", lambda self: (packed_in.append(threading.current_thread().name), real(self))[1]
    )
    outbox = filled(2)
    assert packed_in == []
    taker = threading.Thread(target=take_all, args=(outbox,), name="taker")
    taker.start()
    taker.join(20)
    assert packed_in == ["taker", "taker"]


def test_a_dtype_that_cannot_travel_is_refused_when_it_is_put():
    with pytest.raises(EdgeError, match="complex64"):
        Outbox("r", "e", 1).put(Message(Kind.ACTIVATION, 0, tensors={"h": torch.zeros(2, dtype=torch.complex64)}))


@pytest.mark.parametrize("port", [InProcessPort, SameProcessPort])
def test_within_a_process_what_lies_on_a_device_is_handed_over_as_it_is(port):
    """Tensors of torch's `meta` device have no numbers that could be read: any packing would fail."""
    sent = message(0, "meta")
    outbox = Outbox("r", "e", 2)
    assert outbox.put(sent) and outbox.num_bytes == num_bytes(sent.tensors) == outbox.kept_bytes
    inbox = Inbox("r", "e", port(outbox))
    got = inbox.get(1.0)
    assert got.tensors["h"] is sent.tensors["h"] and (got.batch_id, got.sequence) == (0, 0)
    assert inbox.num_bytes == outbox.num_bytes


def test_what_another_life_has_packed_is_handed_over_packed():
    made = parcel(message(5))
    packet = made.packet()
    assert made.handed() is packet


@pytest.mark.gpu
def test_copies_to_the_host_and_back_change_nothing():
    sent = message(7, "cuda")
    assert torch.equal(begin_leaving(sent.tensors)()["h"], message(7).tensors["h"])
    large = Message(Kind.ACTIVATION, 0, tensors={"h": torch.randn(8, 4, 64, 64).to(memory_format=torch.channels_last)})
    entered = Entrance(torch.device("cuda", 0))(large)().tensors["h"]
    assert entered.device.type == "cuda" and entered.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(entered.cpu(), large.tensors["h"])


def test_the_host_s_memory_needs_no_entrance():
    assert entrance_to("cpu") is None


class Beside:
    """An entrance that notes in which thread it opened which batch."""

    def __init__(self):
        self.opened, self.entered = [], []
        self.news = threading.Condition()

    def __call__(self, message):
        with self.news:
            self.opened.append((message.batch_id, threading.current_thread()))
            self.news.notify_all()

        def entered():
            self.entered.append(message.batch_id)
            return message

        return entered

    def wait_for(self, count):
        with self.news:
            assert self.news.wait_for(lambda: len(self.opened) >= count, 20)


def test_the_next_message_is_opened_beside_the_program_while_it_computes():
    beside = Beside()
    inbox = Inbox("r", "e", InProcessPort(filled(3)), entrance=beside)
    assert inbox.get(1.0).batch_id == 0
    beside.wait_for(2)  # nobody has asked for the second one yet
    assert inbox.received == 0 and beside.entered == [0]
    assert [inbox.get(1.0).batch_id for _ in range(2)] == [1, 2]
    assert [batch for batch, _ in beside.opened] == beside.entered == [0, 1, 2]
    here = threading.current_thread()
    assert [thread is here for _, thread in beside.opened] == [True, False, False]


def test_a_message_spoiled_on_its_way_is_asked_for_again_though_it_was_opened_beside():
    beside = Beside()
    port = FaultyPort(InProcessPort(filled(4)), [Fault(2, "corrupt_payload")])
    inbox = Inbox("r", "e", port, entrance=beside)
    got = []
    for _ in range(100):
        found = inbox.get(0.1)
        got += [] if found is None else [(found.batch_id, float(found.tensors["h"][0]))]
        if len(got) == 4:
            break
    assert got == [(batch, float(batch)) for batch in range(4)]
    assert port.fired and inbox.num_sessions == 1


def test_what_was_opened_for_a_life_of_the_producer_that_is_over_is_not_used():
    beside = Beside()
    inbox = Inbox("r", "e", InProcessPort(filled(3)), entrance=beside)
    assert inbox.get(1.0).batch_id == 0
    beside.wait_for(2)
    again = filled(3)
    again.repeats = True
    inbox.reconnect(InProcessPort(again))
    assert [inbox.get(1.0).batch_id for _ in range(2)] == [1, 2]
    assert inbox.num_sessions == 1 and beside.entered == [0, 1, 2]
