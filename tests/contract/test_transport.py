"""What every carrier promises: order, sessions, back-pressure, retention, an end."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import EdgeError, SessionRefused
from actors.transport.outbox import Outbox, Take
from tests.contract.carriers import (
    DEADLINE_S,
    SLICE_S,
    InProcessCarrier,
    assert_are,
    numbered,
    receive,
    stopped_clock,
    until,
)

WINDOWS = [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2), (3, 3)]


@pytest.mark.parametrize(("window", "limit"), WINDOWS)
def test_messages_put_before_the_consumer_exists_come_in_order_and_bit_equal(carrier, window, limit):
    producer = carrier.producer()
    producer.put_numbers(*range(10))
    inbox = producer.inbox(window=window, limit=limit, clock=stopped_clock)
    assert_are(receive(inbox, 10), *range(10))
    assert inbox.received == 9
    assert (inbox.num_sessions, inbox.num_duplicates, inbox.num_buffered) == (0, 0, 0)


@pytest.mark.parametrize(("window", "limit"), WINDOWS)
def test_messages_put_while_takes_are_outstanding_come_in_order(carrier, window, limit):
    producer = carrier.producer()
    inbox = producer.inbox(window=window, limit=limit, clock=stopped_clock)
    assert inbox.get(0.0) is None
    for start in range(0, 12, 4):
        producer.put_numbers(*range(start, start + 4))
        assert_are(receive(inbox, 4), *range(start, start + 4))
    assert inbox.num_sessions == 0


def test_every_message_names_the_life_of_its_producer(carrier):
    producer = carrier.producer(incarnation=3)
    producer.put_numbers(0)
    inbox = producer.inbox()
    assert receive(inbox)[0].incarnation == 3
    producer.renew(incarnation=4)
    producer.put_numbers(0, 1)  # a take of the first life may still be on its way: it acknowledges message 0
    inbox.reconnect(producer.port())
    assert receive(inbox)[0].incarnation == 4


def test_a_consumer_that_is_ahead_of_a_new_life_of_its_producer_is_refused(carrier):
    producer = carrier.producer()
    producer.put_numbers(0, 1, 2)
    inbox = producer.inbox(window=1)
    receive(inbox, 3)
    producer.renew(incarnation=1)
    with pytest.raises(EdgeError, match="asks for message 3"):
        receive(producer.inbox(incarnation=1, received=inbox.received))


def test_replies_carry_the_version_of_the_producer(carrier):
    producer = carrier.producer()
    producer.put_numbers(0)
    inbox = producer.inbox(window=1)
    receive(inbox)
    assert inbox.producer_version == 0
    producer.set_version(7)
    producer.put_numbers(1, 2)
    receive(inbox, 2)
    assert inbox.producer_version == 7


def test_takes_carry_what_the_consumer_can_still_train_on(carrier):
    producer = carrier.producer()
    inbox = producer.inbox(window=1)
    inbox.oldest_trainable = 5
    inbox.get(0.0)
    until(lambda: producer.facts.oldest_trainable == 5)


def test_a_newer_session_gets_everything_after_what_it_received_again(carrier):
    producer = carrier.producer()
    producer.put_numbers(*range(10))
    old = producer.inbox(window=2, limit=3)
    assert_are(receive(old, 4), 0, 1, 2, 3)
    new = producer.inbox(incarnation=1, received=old.received, window=3, limit=2)
    assert_are(receive(new, 6), *range(4, 10))


def test_an_older_session_is_refused_while_the_newer_one_goes_on(carrier):
    producer = carrier.producer()
    producer.put_numbers(*range(6))
    old = producer.inbox(window=2, limit=1)
    receive(old, 2)
    new = producer.inbox(incarnation=1, received=old.received, clock=stopped_clock)
    assert_are(receive(new, 2), 2, 3)
    with pytest.raises(SessionRefused):
        receive(old, 100)
    producer.put_numbers(6, 7)
    assert_are(receive(new, 4), 4, 5, 6, 7)
    assert new.num_sessions == 0


def test_a_take_that_waits_is_refused_once_a_newer_session_opens(carrier):
    producer = carrier.producer()
    old = producer.inbox(window=2)
    assert old.get(0.0) is None
    new = producer.inbox(incarnation=1)
    assert new.get(0.0) is None
    with pytest.raises(SessionRefused):
        receive(old)
    producer.put_numbers(0)
    assert_are(receive(new), 0)


def test_a_session_can_only_acknowledge_what_it_was_handed(carrier):
    producer = carrier.producer()
    producer.put_numbers(*range(4))
    assert producer.take(limit=1).handed == 1
    assert isinstance(producer.take(limit=1, received=2), EdgeError)
    assert isinstance(producer.take(limit=1, received=4), EdgeError)
    assert producer.facts.kept == [0, 1, 2, 3]


def test_a_take_that_names_another_edge_is_refused():
    outbox = Outbox("run", "a", 1)
    with pytest.raises(EdgeError, match="got a take for edge 'b'"):
        outbox.take(Take("b", (0, 0), -1, -1, 0, 1, 0.0))


def test_an_outbox_needs_room_for_a_message():
    with pytest.raises(ValueError, match="at least 1"):
        Outbox("run", "a", 0)


@pytest.mark.parametrize("capacity", [1, 3])
def test_a_full_outbox_has_room_again_once_the_program_got_messages(carrier, capacity):
    producer = carrier.producer(capacity)
    producer.put_numbers(*range(capacity))
    assert not producer.put(numbered(capacity))
    inbox = producer.inbox()
    assert not producer.put(numbered(capacity))
    assert_are(receive(inbox, capacity), *range(capacity))
    inbox.get(0.0)  # in process, a take is made when it is collected
    until(lambda: producer.put(numbered(capacity)))
    assert_are(receive(inbox), capacity)


def test_messages_that_only_arrived_still_take_up_room(carrier):
    producer = carrier.producer(capacity=3)
    producer.put_numbers(0, 1, 2)
    inbox = producer.inbox(window=3, limit=3)
    assert_are(receive(inbox), 0)
    until(lambda: inbox.port.collect(0.0) == [] and producer.facts.num_waiting == 2)
    assert inbox.num_buffered == 2
    assert producer.put(numbered(3))
    assert not producer.put(numbered(4))


def test_a_put_that_waits_goes_on_when_room_appears(carrier):
    producer = carrier.producer(capacity=1)
    producer.put_numbers(0)
    done = []
    thread = threading.Thread(target=lambda: done.append(producer.put(numbered(1), DEADLINE_S)), daemon=True)
    thread.start()
    assert_are(receive(producer.inbox(window=1), 2), 0, 1)
    thread.join(DEADLINE_S)
    assert done == [True]


@pytest.mark.parametrize("capacity", [1, 2])
@pytest.mark.parametrize(("window", "limit"), WINDOWS)
def test_a_producer_that_always_fills_its_outbox_never_exceeds_it_nor_stops(carrier, capacity, window, limit):
    producer = carrier.producer(capacity)
    inbox = producer.inbox(window=window, limit=limit)
    sent, messages = 0, []
    while len(messages) < 8:
        while producer.put(numbered(sent)):
            sent += 1
        assert sent - len(messages) <= capacity
        messages += receive(inbox, 1 if sent > len(messages) else 0)
        if sent == len(messages):
            inbox.get(0.0)
    assert_are(messages, *range(8))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    capacity=st.integers(1, 4),
    window=st.integers(1, 3),
    limit=st.integers(1, 4),
    steps=st.lists(st.booleans(), max_size=60),
)
def test_any_interleaving_keeps_order_and_capacity_and_never_deadlocks(capacity, window, limit, steps):
    producer = InProcessCarrier().producer(capacity)
    inbox = producer.inbox(window=window, limit=limit)
    sent, messages = 0, []
    for is_put in [*steps, *[False] * capacity]:
        if is_put:
            sent += producer.put(numbered(sent))
        else:
            message = inbox.get(0.0)
            assert (message is None) == (sent == len(messages)), "what was put is got at once in process"
            messages += [] if message is None else [message]
        assert 0 <= sent - len(messages) <= capacity
        assert producer.facts.num_waiting <= capacity
    assert_are(messages, *range(sent))
    inbox.get(0.0)
    assert producer.put(numbered(sent)), "everything was received, so there is room"


def test_a_buffer_that_shrinks_below_what_is_not_acknowledged_has_room_again(carrier):
    """Takes that are still out say less than has been received, and no further one may be made."""
    producer = carrier.producer(capacity=4)
    inbox = producer.inbox(window=2, limit=4)
    producer.put_numbers(0, 1, 2, 3)
    assert_are(receive(inbox, 4), 0, 1, 2, 3)
    producer.resize(2)
    assert producer.facts.num_waiting >= 2 and not producer.put(numbered(4))
    assert inbox.get(0.0) is None
    until(lambda: producer.put(numbered(4)))
    assert_are(receive(inbox), 4)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    window=st.integers(1, 3),
    limit=st.integers(1, 4),
    steps=st.lists(st.sampled_from(["put", "put", "get", 1, 2, 4, 6]), max_size=60),
)
def test_a_buffer_may_be_resized_at_any_time(window, limit, steps):
    producer = InProcessCarrier().producer(4)
    inbox = producer.inbox(window=window, limit=limit)
    sent, messages = 0, []
    for step in steps:
        if step == "put":
            sent += producer.put(numbered(sent))
        elif step == "get":
            message = inbox.get(0.0)
            messages += [] if message is None else [message]
        else:
            producer.resize(step)
    while (message := inbox.get(0.0)) is not None:
        messages.append(message)
    assert_are(messages, *range(sent))
    assert producer.put(numbered(sent)), "everything was received, so there is room"


def test_received_messages_are_freed_where_nothing_retains_them(carrier):
    producer = carrier.producer()
    producer.put_numbers(*range(4))
    inbox = producer.inbox(window=1, limit=1)
    receive(inbox, 4)
    until(lambda: inbox.get(SLICE_S) is None and producer.facts.kept == [])
    assert producer.facts.num_waiting == 0


def test_retained_messages_stay_until_they_are_durable_and_can_be_rewound_to(carrier):
    producer = carrier.producer(capacity=5)
    producer.put_numbers(*range(5))
    inbox = producer.inbox(window=1, limit=1, retains=True)
    receive(inbox, 5)
    until(lambda: inbox.get(SLICE_S) is None and producer.facts.num_waiting == 0)
    assert producer.facts.kept == [0, 1, 2, 3, 4]
    inbox.durable = 2
    producer.put_numbers(5)
    assert_are(receive(inbox), 5)
    until(lambda: inbox.get(SLICE_S) is None and producer.facts.kept == [3, 4, 5])
    again = producer.inbox(incarnation=1, received=2, retains=True, limit=2)
    assert_are(receive(again, 3), 3, 4, 5)


def test_what_is_durable_but_not_received_is_not_freed(carrier):
    producer = carrier.producer()
    producer.put_numbers(0, 1, 2)
    producer.take(limit=3)
    producer.take(limit=3, session=(0, 1), received=0, durable=2)
    assert producer.facts.kept == [1, 2]


def test_a_session_that_asks_for_freed_messages_is_refused(carrier):
    producer = carrier.producer()
    producer.put_numbers(*range(4))
    inbox = producer.inbox(window=1, limit=1)
    receive(inbox, 4)
    until(lambda: inbox.get(SLICE_S) is None and producer.facts.kept == [])
    with pytest.raises(EdgeError, match="asks for message 1"):
        receive(producer.inbox(incarnation=1, received=0))
    producer.put_numbers(4)
    assert_are(receive(inbox), 4)


def test_a_closed_edge_delivers_what_it_stores_and_then_refuses_to_give_more(carrier):
    producer = carrier.producer()
    producer.put_numbers(0, 1, 2)
    producer.close()
    inbox = producer.inbox(window=2, limit=2)
    assert_are(receive(inbox, 2), 0, 1)
    assert not inbox.is_closed
    assert_are(receive(inbox), 2)
    with pytest.raises(EdgeError, match="closed after message 2"):
        receive(inbox)
    assert inbox.is_closed
    with pytest.raises(EdgeError, match="after the end"):
        producer.put(numbered(3))


def test_a_consumer_that_waits_learns_that_the_edge_was_closed(carrier):
    producer = carrier.producer()
    inbox = producer.inbox(window=3)
    assert inbox.get(0.0) is None
    assert not inbox.is_closed
    producer.close()
    with pytest.raises(EdgeError, match="closed after message -1"):
        receive(inbox)
    assert inbox.is_closed


def test_a_closed_edge_can_be_rewound(carrier):
    producer = carrier.producer()
    producer.put_numbers(*range(5))
    producer.close()
    inbox = producer.inbox(retains=True)
    receive(inbox, 5)
    again = producer.inbox(incarnation=1, received=1, retains=True)
    assert_are(receive(again, 3), 2, 3, 4)
    with pytest.raises(EdgeError, match="closed after message 4"):
        receive(again)
