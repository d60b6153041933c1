from hypothesis import given
from hypothesis import strategies as st

from actors.uses import Uses


def test_uses_are_counted_from_the_first_to_the_last():
    moments = iter([2.5, 3.0, 7.25])
    uses = Uses(lambda: next(moments))
    for batch in (4, 0, 4):
        uses.begin(batch)
    assert uses.as_dict() == {"num_uses": 3, "num_batches": 2, "from_s": 2.5, "to_s": 7.25}


@given(st.lists(st.integers(0, 300)))
def test_a_batch_counts_once_however_often_it_is_used(batches):
    uses = Uses(lambda: 0.0)
    for batch in batches:
        uses.begin(batch)
    assert (uses.num_uses, uses.num_batches) == (len(batches), len(set(batches)))
