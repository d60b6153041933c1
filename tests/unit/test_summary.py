import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.summary import (
    Summary,
    accuracy,
    block_entry,
    bottleneck,
    edge_entry,
    last_evaluation,
    mean_loss,
    weights_sha256,
)

DIGESTS = {"conv1.weight": "a1", "conv1.bias": "b2", "conv2.weight": "c3", "output.weight": "d4"}

RECEIVED = {
    "received": 6,
    "arrived": 2,
    "trained": 4,
    "held": 1,
    "dropped": {"full": 1},
    "duplicates": 1,
    "staleness": {},
}


def staleness(counts):
    sent = {"sends": {"e": {"sent": 9, "bytes": 640, "wire": {"codec": "fp32"}, "capacity": 4}}}
    received = {**RECEIVED, "staleness": counts}
    found = edge_entry("e", sent, {"receives": {"e": received}}, 9)["staleness"]
    assert found.pop("bound") == 9
    assert found.pop("histogram") == {str(value): counts[value] for value in sorted(counts, key=int)}
    return found


def test_staleness_of_nothing_is_zero():
    assert staleness({}) == {"mean": 0.0, "p99": 0, "max": 0}


@pytest.mark.parametrize(
    ("counts", "p99"),
    [({0: 100}, 0), ({1: 99, 7: 1}, 1), ({1: 98, 7: 2}, 7), ({0: 1}, 0), ({3: 1, 5: 1}, 5), ({0: 989, 1: 1, 2: 10}, 1),
     ({2: 990, 9: 10}, 2), ({2: 989, 9: 11}, 9)],
)  # fmt: skip
def test_99_percent_of_messages_are_at_most_as_stale_as_p99(counts, p99):
    assert staleness(counts)["p99"] == p99


@given(st.dictionaries(st.integers(0, 40), st.integers(1, 300), min_size=1))
def test_p99_is_the_smallest_value_that_covers_99_percent(counts):
    facts, total = staleness(counts), sum(counts.values())
    covered = sum(count for value, count in counts.items() if value <= facts["p99"])
    less = sum(count for value, count in counts.items() if value < facts["p99"])
    assert covered >= 0.99 * total > less
    assert facts["max"] == max(counts) >= facts["p99"] >= 0
    assert facts["mean"] == pytest.approx(sum(v * c for v, c in counts.items()) / total)


def test_a_histogram_that_went_through_json_has_text_keys_and_counts_the_same():
    counts = {2: 5, 10: 3}
    assert staleness(json.loads(json.dumps(counts))) == staleness(counts)
    assert staleness(counts)["max"] == 10


def test_every_message_of_an_edge_is_in_exactly_one_state():
    sent = {"sends": {"e": {"sent": 9, "bytes": 640, "wire": {"codec": "fp32"}, "capacity": 4}}}
    entry = edge_entry("e", sent, {"receives": {"e": RECEIVED}}, None)
    parts = entry["trained"] + entry["buffered"] + entry["in_flight"] + sum(entry["dropped"].values()) + entry["lost"]
    assert parts == entry["sent"] == 9 and entry["in_flight"] == 1
    assert (entry["name"], entry["bytes"], entry["duplicates"], entry["capacity"]) == ("e", 640, 1, 4)


def test_the_digest_of_a_network_does_not_depend_on_its_cuts_or_their_order():
    whole = weights_sha256(DIGESTS)
    names = list(DIGESTS)
    for cut in range(len(names) + 1):
        blocks = [{name: DIGESTS[name] for name in part} for part in (names[:cut], names[cut:])]
        for first, second in itertools.permutations(blocks):
            assert weights_sha256(first | second) == whole


def test_the_digest_of_a_network_changes_with_any_tensor_or_name():
    others = [DIGESTS | {"conv1.bias": "b3"}, DIGESTS | {"new": "a1"}, {}]
    others += [{"x": "a1", **{name: value for name, value in DIGESTS.items() if name != "conv1.weight"}}]
    others += [{**DIGESTS, "conv1.weight": "b2", "conv1.bias": "a1"}]
    digests = [weights_sha256(digests) for digests in [DIGESTS, *others]]
    assert len(set(digests)) == len(digests)
    assert weights_sha256({"ab": "c"}) != weights_sha256({"a": "bc"})


def evaluation(split, **sums):
    return {"split": split, "sums": sums}


def test_an_evaluation_is_read_as_fractions_per_sample():
    found = evaluation("test", correct=30, loss=80.0, num_samples=40)
    assert accuracy(found) == 0.75 and mean_loss(found) == 2.0
    assert accuracy(None) is None and mean_loss(None) is None
    assert accuracy(evaluation("test", loss=1.0, num_samples=1)) is None
    assert mean_loss(evaluation("test", correct=1, num_samples=1)) is None


def test_the_newest_evaluation_of_a_split_that_has_results_is_taken():
    first, second = evaluation("test", num_samples=1), evaluation("test", num_samples=2)
    facts = {"evaluations": [first, evaluation("validation", num_samples=9), second, evaluation("test")]}
    assert last_evaluation(facts, "test") is second
    assert last_evaluation(facts, "other") is None and last_evaluation({}, "test") is None


def test_a_block_s_entry_tells_its_own_weights_from_its_auxiliary_ones():
    facts = {
        "name": "block0", "layers": ["a"], "version": 4, "updates": 4, "loss": 0.5, "digests": {"a": "1"},
        "auxiliary_digests": {"head": "2"}, "time_fraction": {"compute": 1.0}, "num_skipped": 0,
        "uses": {"num_uses": 4},
        "evaluations": [evaluation("test", correct=1, num_samples=2)],
    }  # fmt: skip
    entry = block_entry(facts)
    assert entry["weights_sha256"] == weights_sha256({"a": "1"}) != entry["auxiliary_sha256"]
    assert entry["test_accuracy"] == 0.5 and entry["restarts"] == 0


def test_the_bottleneck_is_the_block_that_computes_most():
    blocks = [{"name": f"block{i}", "time_fraction": {"compute": c}} for i, c in enumerate((0.2, 0.9, 0.5))]
    assert bottleneck(blocks) == "block1"


def test_a_summary_goes_through_json_and_back():
    summary = Summary(
        method="local", status="completed", test_accuracy=0.9, test_loss=None, validation_accuracy=None,
        samples_per_s=1.5, wall_s=2.0, epochs=3, seed=0, weights_sha256="ab", bottleneck="block0", run_dir="runs/x",
        blocks=[{"name": "block0"}], edges=[{"name": "e"}],
    )  # fmt: skip
    plain = json.loads(json.dumps(summary.as_dict()))
    assert plain["schema"] == 1 and Summary(**plain).as_dict() == plain
