"""Messages whose large tensors are fetched from their producer's memory; here a list stands for a reference to it."""

import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from ray import exceptions

from actors.errors import EdgeError, LostReply, UserError
from actors.messages import Kind, Message
from actors.transport import direct
from actors.transport.direct import MOST_FAILED, Books, DirectPort, fetched, last_line
from actors.transport.inbox import Inbox
from actors.transport.outbox import Outbox, Reply, Take
from actors.transport.packet import Fetched, Packet, Referred
from actors.transport.parcel import Parcel
from actors.transport.ray_pull import RayPort
from actors.transport.same_process import SameProcess
from actors.transport.staging import STAGED_BYTES
from orchestrator.cluster.ray_seat import Seat
from tests.contract.carriers import SLICE_S, receive, same, until

LARGE = STAGED_BYTES // 4 + 1
"""float32 elements that are too many to come with the message."""


def message(batch, **tensors):
    return Message(Kind.ACTIVATION, batch, tensors={"h": torch.arange(batch, batch + float(LARGE))} | tensors)


def parcel(sent, **settings):
    return Parcel(sent, run="r", edge="e", **settings)


class Store:
    """Notes what it is to keep."""

    def __init__(self):
        self.kept = []

    def __call__(self, tensors):
        self.kept.append(tensors)
        return tensors


def test_only_large_tensors_stay_behind_and_once():
    store, sent = Store(), message(3, labels=torch.tensor([3]))
    made = parcel(sent)
    packet = made.referred(store)
    assert isinstance(packet, Referred) and [buffer.nbytes for buffer in packet.buffers] == [8]
    assert [tensor.data_ptr() for tensor in store.kept[0]] == [sent.tensors["h"].data_ptr()], "it was copied"
    assert made.referred(store) is packet and len(store.kept) == 1


def test_a_message_of_small_tensors_is_packed():
    store, made = Store(), parcel(Message(Kind.ACTIVATION, 0, tensors={"labels": torch.tensor([3])}))
    assert type(made.referred(store)) is Packet and store.kept == []


def test_a_message_that_stays_behind_can_still_be_packed_for_a_snapshot():
    store, sent = Store(), message(3)
    made = parcel(sent)
    packet = made.referred(store)
    assert made.packet().buffers[0].nbytes == sent.tensors["h"].nbytes
    assert made.referred(store) is packet


def test_what_was_packed_for_a_snapshot_first_travels_so():
    store, made = Store(), parcel(message(3))
    packed = made.packet()
    assert made.referred(store) is packed and store.kept == []


def test_a_part_of_a_large_tensor_gets_memory_of_its_own():
    store, whole = Store(), torch.arange(3.0 * LARGE)
    parcel(Message(Kind.ACTIVATION, 0, tensors={"h": whole[LARGE : 2 * LARGE]})).referred(store)
    (kept,) = store.kept[0]
    assert kept.untyped_storage().nbytes() == kept.nbytes and same(kept, whole[LARGE : 2 * LARGE])


def test_of_a_message_on_two_devices_that_on_a_device_stays_behind():
    """Those of one reference lie on devices of one kind. Tensors of torch's `meta` device can't be packed."""
    store, image = Store(), torch.zeros(1, 2, 4, LARGE, device="meta").to(memory_format=torch.channels_last)
    packet = parcel(message(3, image=image)).referred(store)
    assert [(tensor.device.type, list(tensor.shape)) for tensor in store.kept[0]] == [("meta", [1, 4, LARGE, 2])]
    assert [buffer.nbytes for buffer in packet.buffers] == [4 * LARGE]


class Producer:
    """Stands for the handle of a Ray actor; `fails`: how many of its answers can't be fetched."""

    def __init__(self, outbox):
        self.outbox = outbox
        self.take = self.take_referred = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._answer))

    def _answer(self, take):
        call = Future()
        call.set_result(self.outbox.take_referred(take, put=list))
        return SimpleNamespace(future=lambda: call)


def filled(*batches):
    outbox = Outbox("r", "e", 16)
    for batch in batches:
        assert outbox.put(message(batch, labels=torch.tensor([batch])))
    return outbox


def all_of(outbox, number=0):
    return Take("e", (0, number), -1, -1, 0, outbox.num_sent, 0.0)


def test_the_program_gets_what_was_fetched_beside_it(monkeypatch):
    fetched_in = []

    def read(references, device):
        fetched_in.append((threading.current_thread().name.split("_")[0], device, len(references)))
        return references

    monkeypatch.setattr(direct, "read", read)
    outbox = filled(0, 1, 2)
    inbox = Inbox("r", "e", DirectPort(Producer(outbox), "cpu"), limit=3)
    got = receive(inbox, 3)
    assert fetched_in == [("fetches", "cpu", 3)]
    for batch, one in enumerate(got):
        assert list(one.tensors) == ["h", "labels"] and one.sequence == batch
        assert same(one.tensors["h"], message(batch).tensors["h"])
    assert inbox.num_bytes == 3 * (4 * LARGE + 8)


def test_a_reply_without_references_passes_no_other_thread(monkeypatch):
    monkeypatch.setattr(direct, "read", lambda *_: pytest.fail("nothing is to be fetched"))
    outbox = Outbox("r", "e", 4)
    port = DirectPort(Producer(outbox), "cpu")
    port.request(all_of(outbox))
    assert [type(reply) for _, reply in port.collect(0.0)] == [Reply]


def test_a_failed_fetch_is_a_lost_reply_and_too_many_in_a_row_end_the_edge(monkeypatch):
    fails = iter([*[True] * (MOST_FAILED - 1), False, *[True] * MOST_FAILED])

    def read(references, device):
        if next(fails):
            raise exceptions.RayDirectTransportError("The transfer failed:\n  NIXL_ERR_REMOTE_DISCONNECT\n")
        return references

    monkeypatch.setattr(direct, "read", read)
    outbox = filled(0)
    port = DirectPort(Producer(outbox), "cpu")
    ends = []
    for number in range(2 * MOST_FAILED):
        take = all_of(outbox, number)
        port.request(take)
        (end,) = until(lambda: port.collect(SLICE_S))
        assert end[0] == take
        ends.append(end[1])
    kinds = [LostReply] * (MOST_FAILED - 1)
    assert [type(end) for end in ends] == [*kinds, Reply, *kinds, EdgeError]
    assert "memory (NIXL_ERR_REMOTE_DISCONNECT)" in str(ends[0])
    assert "8 times in a row; set placement.device_transport=host" in str(ends[-1])


def test_every_packet_gets_the_tensors_of_its_own_reference():
    outbox = filled(0, 1)
    outbox.put(Message(Kind.ACTIVATION, 9, tensors={"labels": torch.tensor([9])}))
    reply = fetched(outbox.take_referred(all_of(outbox), put=list), lambda lists: lists)
    assert [type(packet) for packet in reply.packets] == [Fetched, Fetched, Packet]
    assert [packet.tensors[0][0].item() for packet in reply.packets[:2]] == [0.0, 1.0]


def test_what_ray_knows_of_objects_fetched_long_ago_is_dropped(monkeypatch):
    known = dict.fromkeys("abcd")
    rdt = SimpleNamespace(_lock=threading.Lock(), _managed_rdt_metadata=known)
    monkeypatch.setattr(direct.worker, "global_worker", SimpleNamespace(rdt_manager=rdt))
    books = Books(keep=2)
    for name in "abacd":
        books.note([SimpleNamespace(hex=lambda name=name: name)])
    assert list(known) == ["c", "d"]


def test_a_machine_without_nixl_is_named_in_one_sentence(monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'nixl'")

    monkeypatch.setattr(direct, "_share_agent", missing)
    with pytest.raises(UserError) as refusal:
        direct.prepare("cpu")
    message = str(refusal.value)
    assert "\n" not in message and "device cpu (No module named 'nixl'), expected" in message
    assert message.endswith("install unlocked[rdt] there, or set placement.device_transport=host")


def test_an_error_of_many_lines_is_told_by_its_last():
    assert last_line(ValueError("first\nthe cause.\n")) == "the cause"
    assert last_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("producer", "consumer", "kind"),
    [("cuda", "cuda", DirectPort), ("cpu", "cuda", DirectPort), (None, "cuda", RayPort), ("cuda", None, RayPort)],
)
def test_a_line_is_direct_where_both_ends_are(producer, consumer, kind):
    process = Producer(None)
    seat = Seat("here", fetches_to=consumer)
    assert type(seat.line_to(Seat(process, fetches_to=producer))) is kind
    assert isinstance(seat.line_to(Seat("here", 1, fetches_to=producer)), SameProcess)
