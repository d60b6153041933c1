"""What does not add up on an edge, from reports that are not taken at the same moment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger_watch import LedgerWatch
from orchestrator.wiring import Edge

EDGE = Edge("a->b", "a", "b")


def reports(sent=0, unreceived=0, received=0, arrived=0, version=7, lives=(1, 2), **own):
    got = {
        "received": received,
        "sessions": 0,
        "arrived": arrived,
        "trained": received,
        "held": 0,
        "dropped": {},
        "imbalance": None,
    }
    return {
        "a": {"pid": lives[0], "incarnation": 0, "sends": {EDGE.name: {"sent": sent, "unreceived": unreceived}}},
        "b": {"pid": lives[1], "incarnation": 0, "version": version, "receives": {EDGE.name: {**got, **own}}},
    }


def looks(*several):
    watch = LedgerWatch([EDGE])
    return [watch.look(each) for each in several]


@given(st.lists(st.sampled_from(["send", "arrive", "receive", "acknowledge", "ask a", "ask b"]), max_size=120))
def test_a_sound_edge_is_never_suspected_whenever_its_ends_are_asked(steps):
    watch, asked = LedgerWatch([EDGE]), {}
    sent = arrived = received = acknowledged = 0
    for step in steps:
        sent += step == "send"
        arrived += step == "arrive" and received + arrived < sent
        if step == "receive" and arrived:
            received, arrived = received + 1, arrived - 1
        acknowledged = received if step == "acknowledge" else acknowledged
        if step.startswith("ask"):
            name = step[-1]
            asked.setdefault(name, reports(sent, sent - acknowledged, received, arrived)[name])
        if len(asked) == 2:
            assert watch.look(asked) == []
            asked = {}


WRONG = {"received": 9, "trained": 6, "held": 1, "dropped": {"full": 1}, "position": 5}


def test_what_a_consumer_finds_in_its_own_books_is_told_with_its_position():
    ((found,),) = looks(reports(9, 0, 9, imbalance=WRONG))
    assert (found["edge"], found["position"]) == ("a->b", 5)
    assert found["reason"] == (
        "edge a->b: at version 5 b had been handed 9 messages, 6 trained, 1 buffered, 1 dropped, 1 mislaid; "
        "that does not add up"
    )


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        (reports(5, 0, 5, 2), reports(6, 0, 6), "edge a->b: b had 7 messages when a had not sent more than 6"),
        (reports(5, 0, 2), reports(9, 0, 4), "edge a->b: a knew of 5 received messages, b of 4 later"),
    ],
)  # fmt: skip
def test_what_two_looks_can_t_both_say_is_told(before, now, reason):
    nothing, (found,) = looks(before, now)
    assert nothing == [] and found["reason"] == f"{reason}; that does not add up" and found["position"] == 7


def test_reports_of_one_moment_only_are_not_compared():
    assert looks(reports(5, 0, 9, 2)) == [[]]


@pytest.mark.parametrize("lives", [(3, 2), (1, 3)])
def test_an_actor_that_began_anew_is_not_compared_with_the_one_before(lives):
    assert looks(reports(5, 0, 9, 2), reports(6, 0, 0, lives=lives)) == [[], []]
    again = reports(6, 0, 0)
    again["a"]["incarnation"] = 1
    assert looks(reports(5, 0, 9, 2), again) == [[], []]


def test_every_edge_is_told_of_once():
    watch = LedgerWatch([EDGE])
    wrong = reports(9, 0, 9, imbalance=WRONG)
    assert [len(watch.look(wrong)) for _ in range(3)] == [1, 0, 0]
    assert watch.close(wrong) == []


def test_an_actor_that_says_nothing_is_waited_for():
    watch, wrong = LedgerWatch([EDGE]), reports(9, 0, 9, imbalance=WRONG)
    assert watch.look({"a": wrong["a"]}) == [] and watch.look({"b": wrong["b"]}) == []
    assert len(watch.look(wrong)) == 1


def test_at_the_end_the_whole_account_is_checked():
    assert LedgerWatch([EDGE]).close(reports(9, 0, 7, 2)) == []
    (found,) = LedgerWatch([EDGE]).close(reports(9, 0, 7, 2, trained=6))
    assert "9 messages were sent, 6 trained, 2 buffered, 0 in flight, 0 dropped, 0 lost, 1 mislaid" in found["reason"]
    (found,) = LedgerWatch([EDGE]).close(reports(9, 0, 7, 3))
    assert "-1 in flight" in found["reason"]
