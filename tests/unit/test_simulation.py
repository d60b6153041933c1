"""The simulation by discrete events against the event model, which advances the same programs in another way."""

import pytest

from actors.edges import EdgeSettings
from actors.errors import RunError
from actors.spec import PluginSpec
from orchestrator import contention
from orchestrator.chain_profile import NOTHING, BlockProfile, Carriage, ChainProfile, Work
from orchestrator.event_model import needs_of, predict
from orchestrator.simulated_device import Link
from orchestrator.simulation import Chain, Machines, Simulation
from orchestrator.timed_block import Costs
from orchestrator.wiring import wire

OVERLAPPING = {"reach": 2, "losses": "every"}


def chain_of(rule, settings=None, *, num_blocks, schedule="pipeline", s=0.0, capacity=4, late="stash", bound=None):
    spec = PluginSpec(rule, None, settings or {})
    needs = needs_of(spec, "cross_entropy", num_blocks)
    return Chain(
        wire(needs, schedule=schedule, delay_per_hop=s), needs, spec, PluginSpec("cross_entropy", None, {}),
        EdgeSettings(capacity=capacity, window=min(2, capacity), limit=capacity), late=late, bound=bound,
    )  # fmt: skip


def each_its_own(num_blocks, **more):
    return Machines(speeds=(1.0,) * num_blocks, device_of=range(num_blocks), **more)


def profile_of(busy, cpu=None, load=NOTHING, carriage=None, wiring=None):
    cpu = busy if cpu is None else cpu
    blocks = tuple(
        BlockProfile(
            f"block{i}", (f"layer{i}",), 0, 0,
            {"forward": Work(w / 3, c / 3), "learn": Work(2 * w / 3, 2 * c / 3)}, {"forward": 1.0, "learn": 1.0},
        )
        for i, (w, c) in enumerate(zip(busy, cpu, strict=True))
    )  # fmt: skip
    edges = {edge.name: carriage for edge in wiring.edges} if carriage else {}
    return ChainProfile(load, blocks, edges, batch_size=10)


UNEVEN = [Costs(), Costs(forward=2.0), Costs(backward=3.0, update=0.5), Costs(loss=0.25)]


@pytest.mark.parametrize("capacity", [1, 4])
@pytest.mark.parametrize("m", [0.0, 0.3, 7.0])
@pytest.mark.parametrize(
    ("rule", "settings", "schedule", "s"),
    [
        ("local", {}, "pipeline", 0),
        ("local", {}, "lockstep", 0),
        ("backprop", {}, "pipeline", 0),
        ("backprop", {}, "pipeline", 1),
        ("backprop", {}, "lockstep", 0),
        ("backprop", OVERLAPPING, "pipeline", 2),
        ("direct_feedback_alignment", {}, "pipeline", 2),
        ("synthetic_gradients", {}, "pipeline", 1),
        ("synthetic_gradients", {"synthetic_inputs": True}, "pipeline", 2),
    ],
)
def test_every_block_starts_on_every_batch_when_the_event_model_says_so(rule, settings, schedule, s, m, capacity):
    expected = predict(
        rule, settings, num_blocks=4, schedule=schedule, delay_per_hop=s, costs=UNEVEN, message_s=m,
        capacity=capacity, num_batches=40,
    )  # fmt: skip
    chain = chain_of(rule, settings, num_blocks=4, schedule=schedule, s=s, capacity=capacity)
    got = Simulation(chain, UNEVEN, each_its_own(4, link=Link(latency_s=m)), 40).run()
    for mine, theirs in zip(got.starts, expected.starts, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
    assert got.period_s == pytest.approx(expected.period_s)


def test_a_chain_that_can_not_progress_is_refused(monkeypatch):
    chain = chain_of("backprop", num_blocks=4, s=3)
    monkeypatch.setattr(
        "orchestrator.simulation.edge_capacities", lambda edges, settings, room: dict.fromkeys(edges, 1)
    )
    with pytest.raises(RunError, match=r"nothing can advance: .*block0 on block0->block1"):
        Simulation(chain, [Costs()] * 4, each_its_own(4, link=Link(latency_s=0.3)), 20).run()


def test_blocks_that_share_two_cores_are_as_fast_as_the_cores():
    """Four blocks of 1 s and a source of 0.4 s on two cores: 4.4 / 2 s a batch, though each block alone takes 1 s."""
    chain = chain_of("local", num_blocks=4)
    profile = profile_of([1.0] * 4, load=Work(0.4, 0.4))
    got = Simulation(chain, profile, Machines(cores=2), 200).run()
    assert got.period_s == pytest.approx(2.2, rel=0.02)
    assert got.busy == [pytest.approx(2.0, rel=0.05)]


def test_blocks_that_only_wait_for_their_devices_need_no_core():
    chain = chain_of("local", num_blocks=8)
    profile = profile_of([1.0] * 8, cpu=[0.01] * 8)
    assert Simulation(chain, profile, Machines(cores=1), 100).run().period_s == pytest.approx(1.0, rel=0.02)


def test_the_carrying_of_messages_takes_core_seconds_too():
    """One core: two blocks of 1 s, two edges of 0.1 s of carrying and 0.05 s at each end."""
    chain = chain_of("local", num_blocks=2)
    carriage = Carriage(8, Work(0.05, 0.05), Work(0.1, 0.1), Work(0.05, 0.05))
    profile = profile_of([1.0, 1.0], carriage=carriage, wiring=chain.wiring)
    assert Simulation(chain, profile, Machines(cores=1), 100).run().period_s == pytest.approx(2.4, rel=0.02)


def test_a_device_at_half_speed_takes_twice_as_long():
    chain = chain_of("local", num_blocks=3)
    machines = Machines(speeds=(1.0, 0.5, 1.0), device_of=(0, 1, 2))
    got = Simulation(chain, profile_of([1.0] * 3), machines, 60).run()
    assert got.period_s == pytest.approx(2.0)
    assert got.busy[1] > 0.95 and got.busy[0] == pytest.approx(0.5, rel=0.15)


def test_blocks_on_one_device_take_turns():
    chain = chain_of("local", num_blocks=4)
    machines = Machines(speeds=(1.0, 1.0), device_of=(0, 0, 1, 1))
    assert Simulation(chain, profile_of([1.0] * 4), machines, 100).run().period_s == pytest.approx(2.0, rel=0.02)


def test_messages_of_an_edge_share_its_bandwidth_but_not_its_latency():
    chain = chain_of("local", num_blocks=3)
    profile = profile_of([1.0] * 3, carriage=Carriage(200), wiring=chain.wiring)
    slow = Simulation(chain, profile, each_its_own(3, link=Link(bytes_per_s=100)), 60).run()
    late = Simulation(chain, profile, each_its_own(3, link=Link(latency_s=2.0)), 60).run()
    assert slow.period_s == pytest.approx(2.0)
    assert late.period_s == pytest.approx(1.0)


def test_jitter_keeps_the_mean_and_repeats_with_its_seed():
    chain, profile = chain_of("local", num_blocks=1), profile_of([1.0])
    runs = [Simulation(chain, profile, each_its_own(1, jitter=0.5, seed=seed), 800).run().total_s for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0] / 800 == pytest.approx(1.0, rel=0.08)


def test_a_staleness_bound_is_kept_and_without_one_messages_grow_old():
    """A fast block before a slow one runs ahead by what the edge holds."""
    profile = profile_of([0.1, 1.0])
    free = Simulation(chain_of("local", num_blocks=2), profile, each_its_own(2), 60).run()
    bound = Simulation(chain_of("local", num_blocks=2, bound=1), profile, each_its_own(2), 60).run()
    assert free.staleness["block0->block1"]["max"] > 2
    assert bound.staleness["block0->block1"]["max"] <= 1
    assert bound.batches_in_flight < free.batches_in_flight


def test_a_bound_of_zero_lets_blocks_overlap_where_lockstep_does_not():
    """Equal blocks of 1 s: a producer works on a batch while its consumer trains on the one before."""
    chains = chain_of("local", num_blocks=3, bound=0), chain_of("local", num_blocks=3, schedule="lockstep")
    paced, locked = (Simulation(chain, profile_of([1.0] * 3), each_its_own(3), 60).run() for chain in chains)
    assert {seen["max"] for each in (paced, locked) for seen in each.staleness.values()} == {0}
    assert paced.period_s == pytest.approx(1.0)
    assert locked.period_s == pytest.approx(5 / 3), "two forward passes, and all of the last block's work"


@pytest.mark.parametrize("bound", [0, 2])
def test_a_bound_is_kept_where_the_predecessors_activation_is_a_late_input(bound):
    """There the source's line drives a block, and only the late activation has a producer that is paced."""
    chain = chain_of("synthetic_gradients", {"synthetic_inputs": True}, num_blocks=3, s=2, bound=bound)
    got = Simulation(chain, [Costs(), Costs(forward=4.0), Costs()], each_its_own(3), 40).run()
    assert set(got.staleness) == {"block0->block1", "block1->block2"}
    assert all(seen["max"] <= bound for seen in got.staleness.values())


def test_a_chain_without_a_bound_holds_what_its_slowest_block_lets_pile_up():
    """The last block is the slow one: its edge is full (4), and so is every edge below."""
    got = Simulation(chain_of("local", num_blocks=3), profile_of([0.1, 0.1, 1.0]), each_its_own(3), 80).run()
    assert got.batches_in_flight == pytest.approx(3 * 4 + 3, abs=0.5)


def test_cores_that_slow_each_other_down_take_that_much_longer():
    chain, profile = chain_of("local", num_blocks=2), profile_of([1.0, 1.0])
    assert Simulation(chain, profile, Machines(cores=2, slowdown=1.5), 60).run().period_s == pytest.approx(
        1.5, rel=0.02
    )
    assert Simulation(chain, profile, Machines(cores=1, slowdown=1.5), 60).run().period_s == pytest.approx(
        2.0, rel=0.02
    )


def test_work_of_a_real_core_is_never_faster_beside_others():
    assert contention.slowdown(1) == 1.0
    assert contention.slowdown(2) >= 1.0


def test_blocks_that_share_a_device_hold_it_even_while_their_core_waits_for_it():
    profile = profile_of([1.0] * 2, cpu=[0.1] * 2)
    got = Simulation(chain_of("local", num_blocks=2), profile, Machines(speeds=(1.0,), device_of=(0, 0)), 60).run()
    assert got.period_s == pytest.approx(2.0, rel=0.02)
