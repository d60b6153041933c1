"""When a lost actor may be replaced, and when the run must end."""

from orchestrator.failures import Failure, Failures


def died(batch, actor="block1"):
    return Failure(actor, "its process died", batch)


def raised(batch, actor="block1"):
    return Failure(actor, "ValueError: no", batch, raised=True)


def verdicts(failures, events):
    return [failures.add(event) for event in events]


def test_a_block_that_raises_at_the_same_batch_twice_ends_the_run():
    found = verdicts(Failures(9), [raised(7), raised(8), raised(7)])
    assert found[:2] == [None, None]
    assert found[2] == "block1 raised at batch 7 in 2 lives, so it always will: ValueError: no"


def test_blocks_that_raise_at_the_same_batch_once_each_may_go_on():
    assert verdicts(Failures(9), [raised(7, "block0"), raised(7, "block1")]) == [None, None]


def test_a_process_that_dies_in_the_same_step_in_three_consecutive_lives_ends_the_run():
    found = verdicts(Failures(9), [died(7), died(7), died(7)])
    assert found[:2] == [None, None]
    assert "block1 died during the step of batch 7 in 3 consecutive lives" in found[2]


def test_a_death_at_another_batch_or_at_none_between_them_starts_the_count_again():
    assert verdicts(Failures(9), [died(7), died(7), died(5), died(7), died(7)]) == [None] * 5
    assert verdicts(Failures(9), [died(None), died(None), died(None)]) == [None] * 3
    assert verdicts(Failures(9), [died(7), died(7), died(None), died(7)]) == [None] * 4


def test_more_failures_than_allowed_end_the_run_whoever_fails():
    found = verdicts(Failures(2), [died(1, "block0"), died(2, "source"), died(3, "block2")])
    assert found[:2] == [None, None] and "failure 3, more than recovery.max_failures = 2" in found[2]


def gone_with(node, actor, at_s):
    return Failure(actor, "its process died", None, node=node, at_s=at_s)


def test_what_a_node_takes_with_it_is_one_failure():
    failures = Failures(1)
    actors = ["source", "block0", "block1", "block2"]
    assert verdicts(failures, [gone_with("a", actor, 5.0 + i) for i, actor in enumerate(actors)]) == [None] * 4
    assert failures.count == 1


def test_deaths_on_a_node_that_lives_are_failures_each():
    for second in (
        gone_with("a", "block0", 7.0),  # it again
        gone_with("a", "block1", 17.0),  # later
        gone_with("b", "block1", 7.0),  # elsewhere
        Failure("block1", "ValueError: no", None, raised=True, node="a", at_s=7.0),
    ):
        assert verdicts(Failures(1), [gone_with("a", "block0", 5.0), second])[1] is not None
    beside_the_driver = [gone_with("", "block0", 5.0), gone_with("", "block1", 5.0)]
    assert verdicts(Failures(1), beside_the_driver)[1] is not None


def test_each_further_replacement_of_an_actor_waits_twice_as_long():
    failures = Failures(9, backoff_s=1.5)
    waits = []
    for _ in range(3):
        failures.add(died(None))
        waits.append(failures.wait_s("block1"))
    failures.add(died(None, "block2"))
    assert waits == [1.5, 3.0, 6.0] and failures.wait_s("block2") == 1.5
