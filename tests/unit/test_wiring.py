import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.edges import BlockEdges, LateInput, SourceEdges
from actors.needs import Feedback, Needs, Place, feedback_delay
from actors.plugins import find_plugin, plugin_names
from orchestrator.wiring import SOURCE, Edge, block_name, wire

SCHEDULES = ["pipeline", "lockstep"]


def next_block(*origins):
    return Needs(feedback=Feedback.NEXT_BLOCK, origins=origins)


def last_block(*origins):
    return Needs(feedback=Feedback.LAST_BLOCK, origins=origins)


def names(edges):
    return [edge.name for edge in edges]


def test_without_feedback_only_the_forward_edges_exist():
    wiring = wire([Needs()] * 3, schedule="pipeline")
    assert wiring.edges == (
        Edge("source->block0", "source", "block0"),
        Edge("block0->block1", "block0", "block1"),
        Edge("block1->block2", "block1", "block2"),
    )
    assert wiring.source == SourceEdges(up=("source->block0",))
    assert wiring.blocks == (
        BlockEdges(driver="source->block0", up="block0->block1"),
        BlockEdges(driver="block0->block1", up="block1->block2"),
        BlockEdges(driver="block1->block2"),
    )


def test_one_block_has_one_edge():
    wiring = wire([Needs()], schedule="pipeline")
    assert names(wiring.edges) == ["source->block0"] and wiring.blocks[0].up is None


def test_feedback_of_one_origin_goes_from_block_to_block():
    wiring = wire([next_block(2), next_block(2), Needs()], schedule="pipeline")
    assert names(wiring.edges)[3:] == ["block1->block0:feedback2", "block2->block1:feedback2"]
    first, middle, last = wiring.blocks
    assert first.late == (LateInput("block1->block0:feedback2", 2, 1),) and first.down == {}
    assert middle.late == (LateInput("block2->block1:feedback2", 2, 1),)
    assert middle.down == {2: ("block1->block0:feedback2",)}
    assert last.late == () and last.down == {2: ("block2->block1:feedback2",)}


def test_feedback_of_several_origins_has_one_edge_per_origin():
    wiring = wire([next_block(1, 2), next_block(2), Needs()], schedule="pipeline")
    first, middle, last = wiring.blocks
    assert [(late.edge, late.origin) for late in first.late] == [
        ("block1->block0:feedback1", 1),
        ("block1->block0:feedback2", 2),
    ]
    assert middle.down == {1: ("block1->block0:feedback1",), 2: ("block1->block0:feedback2",)}
    assert last.down == {2: ("block2->block1:feedback2",)}


def test_the_last_block_tells_every_block_directly():
    wiring = wire([last_block(2), last_block(2), Needs()], schedule="pipeline")
    assert wiring.edges[3:] == (
        Edge("block2->block0:feedback2", "block2", "block0"),
        Edge("block2->block1:feedback2", "block2", "block1"),
    )
    assert wiring.blocks[2].down == {2: ("block2->block0:feedback2", "block2->block1:feedback2")}
    assert wiring.blocks[1].down == {}


def test_under_lockstep_every_block_tells_the_source_what_it_finished():
    wiring = wire([Needs()] * 2, schedule="lockstep")
    assert wiring.edges[2:] == (
        Edge("block0->source:done", "block0", "source"),
        Edge("block1->source:done", "block1", "source"),
    )
    assert wiring.source.done == ("block0->source:done", "block1->source:done")
    assert [block.done for block in wiring.blocks] == list(wiring.source.done)
    assert all(block.done is None for block in wire([Needs()] * 2, schedule="pipeline").blocks)


@pytest.mark.parametrize(
    ("per_hop", "delays"), [(0.0, [1, 1, 1]), (0.5, [2, 2, 1]), (1.0, [4, 3, 2]), (1.5, [5, 4, 2]), (2.0, [7, 5, 3])]
)
def test_feedback_of_h_hops_is_late_by_one_plus_the_floor_of_delay_times_hops(per_hop, delays):
    wiring = wire([last_block(3)] * 3 + [Needs()], schedule="pipeline", delay_per_hop=per_hop)
    assert [block.late[0].delay for block in wiring.blocks[:3]] == delays
    assert [feedback_delay(hops, per_hop) for hops in (3, 2, 1)] == delays


def test_the_edges_that_end_at_an_actor_are_listed():
    wiring = wire([next_block(1), Needs()], schedule="lockstep")
    assert names(wiring.incoming("block0")) == ["source->block0", "block1->block0:feedback1"]
    assert names(wiring.incoming(SOURCE)) == ["block0->source:done", "block1->source:done"]


@st.composite
def chains(draw):
    """Needs in which a block that relays an origin's feedback gets it itself, as rules declare them."""
    size = draw(st.integers(1, 6))
    needs = []
    for index in range(size):
        kind = draw(st.sampled_from(Feedback)) if index + 1 < size else Feedback.NONE
        above = list(range(index + 1, size))
        chosen = draw(st.lists(st.sampled_from(above), unique=True, min_size=1)) if above else []
        origins = tuple(sorted(chosen)) if kind is not Feedback.NONE else ()
        needs.append(Needs(feedback=kind, origins=origins))
    return needs


def check_the_three_views_agree(needs, wiring):
    """Edges, blocks and source say the same: each edge leaves one actor and enters another, once."""
    leaving, entering = {}, {}
    for name in wiring.source.up:
        leaving[name] = SOURCE
    for name in wiring.source.done:
        entering[name] = SOURCE
    for index, block in enumerate(wiring.blocks):
        out = [name for edges in block.down.values() for name in edges]
        out += [name for name in (block.up, block.done) if name is not None]
        into = [block.driver, *(late.edge for late in block.late)]
        assert not set(out) & set(leaving) and not set(into) & set(entering)
        leaving |= dict.fromkeys(out, block_name(index))
        entering |= dict.fromkeys(into, block_name(index))
    assert leaving == {edge.name: edge.producer for edge in wiring.edges}
    assert entering == {edge.name: edge.consumer for edge in wiring.edges}
    assert len({edge.name for edge in wiring.edges}) == len(wiring.edges)
    assert all(edge.producer != edge.consumer for edge in wiring.edges)
    assert [tuple(late.origin for late in block.late) for block in wiring.blocks] == [n.origins for n in needs]


@settings(max_examples=60, deadline=None)
@given(needs=chains(), schedule=st.sampled_from(SCHEDULES), per_hop=st.sampled_from([0.0, 0.5, 1.0, 2.5]))
def test_edges_blocks_and_source_agree_for_any_needs(needs, schedule, per_hop):
    wiring = wire(needs, schedule=schedule, delay_per_hop=per_hop)
    check_the_three_views_agree(needs, wiring)
    for index, block in enumerate(wiring.blocks):
        assert [late.delay for late in block.late] == [1 + int(per_hop * (o - index)) for o in needs[index].origins]
        for origin, edges in block.down.items():
            assert origin >= index and all(f":feedback{origin}" in edge for edge in edges)


@pytest.mark.parametrize("rule", plugin_names("rule"))
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_needs_of_every_rule_are_wired_consistently_and_can_be_met(rule, schedule, size):
    kind = find_plugin("rule", rule)
    needs = [kind.needs(kind.Config(), Place(index, size)) for index in range(size)]
    wiring = wire(needs, schedule=schedule)
    check_the_three_views_agree(needs, wiring)
    for index, block in enumerate(wiring.blocks):
        relayed = {origin for origin in block.down if origin != index}
        assert relayed <= {late.origin for late in block.late}, "a block can only pass on what reaches it"
