"""What is said, and how often, while a run's bundles or another process of a lost actor wait for resources."""

import time

import pytest

from actors.errors import UserError
from orchestrator.cluster.contract import Ended, Request

ASKED = Request(("block0", "block1"), 0.1, labels={"rack": "b"}, resources={"microscope": 1})
DEADLINE_S = 60.0
SOON_S = 0.05


@pytest.fixture
def bundles(ray_session, monkeypatch):
    """The module that reserves, impatient."""
    from orchestrator.cluster import ray_bundles, ray_joining

    assert ray_bundles.SAY_EVERY_S == 30, "as the README says"
    for module in (ray_bundles, ray_joining):
        monkeypatch.setattr(module, "SAY_FIRST_S", SOON_S)
        monkeypatch.setattr(module, "SAY_EVERY_S", SOON_S)
    return ray_bundles


def test_a_run_that_waits_says_what_for_again_and_again(bundles):
    said = []
    with pytest.raises(
        UserError, match=r"placement.wait_s: after 1 s nothing was placed: asked are 0.1 CPU \+ 1 micro"
    ):
        bundles.reserve([ASKED], "PACK", wait_s=1.0, say=said.append)
    assert len(said) >= 2
    for line in said:
        assert line.startswith("waiting for resources since ") and "microscope in 1 bundles (PACK), on nodes" in line
        assert "the cluster has" in line and "labelled" in line and "are free" in line


class Waiting:
    """Actors whose next life is built in a process that asks for this."""

    def __init__(self, wait_s, deadline_s=600.0, *, is_outside=False, **options):
        from orchestrator.cluster.ray_host import remote_host
        from orchestrator.cluster.ray_joining import Joining

        self.said = []
        self.joining = Joining(wait_s, deadline_s, self.said.append)
        self.process = remote_host(2).options(**options).remote()
        self.call = self.process.assign.remote([])
        self.joining.add(self.call, self.process, ASKED, {}, is_outside=is_outside)

    def look_until(self, holds):
        """Look for those that are late until `holds()`, or until one is."""
        until = time.monotonic() + DEADLINE_S
        while not (late := self.joining.late()) and not holds():
            assert time.monotonic() < until, self.said
        return late


NEVER = {"num_cpus": 0, "resources": {"microscope": 1}}


def test_another_process_that_finds_no_place_is_waited_for_aloud_and_as_long_as_placement_says(bundles, ray_session):
    waiting = Waiting(0.5, **NEVER)
    [ended] = waiting.look_until(lambda: False)
    assert len(waiting.said) >= 2 and waiting.said[0].startswith("waiting for resources since 0 s: asked are 0.1 CPU")
    assert (
        "1 microscope for block0 and block1 to go on, on nodes labelled {'rack': 'b'}; the cluster" in waiting.said[0]
    )
    assert ended.name == "block0" and ended.is_mistake and "placement.wait_s: after " in ended.reason
    assert not waiting.joining
    ray_session.kill(waiting.process)


def test_spares_that_no_block_could_use_are_not_kept_in_silence(bundles):
    said = []
    assert bundles.num_spares([Request((), 1.0)], 2, said.append) == 2 and said == []
    assert bundles.num_spares([Request((), 1.0), ASKED], 0, said.append) == 0 and said == []
    assert bundles.num_spares([Request((), 1.0), ASKED], 2, said.append) == 0
    assert len(said) == 1 and said[0].startswith("recovery.spares: got 2, and blocks that ask for")


def test_a_process_that_waits_for_its_place_is_no_failure(bundles, ray_session):
    waiting = Waiting(600.0, SOON_S, **NEVER)
    assert waiting.look_until(lambda: len(waiting.said) >= 3) == []
    assert waiting.joining.names == {"block0", "block1"} and waiting.joining.refs == [waiting.call]
    ray_session.kill(waiting.process)


def test_a_process_that_is_there_and_does_not_build_is_one_and_says_nothing(bundles, ray_session, monkeypatch):
    from orchestrator.cluster import ray_joining

    monkeypatch.setattr(ray_joining, "SAY_FIRST_S", DEADLINE_S)
    waiting = Waiting(600.0, SOON_S, is_outside=True, num_cpus=0)
    ended = waiting.look_until(lambda: False)
    assert ended == [Ended("block0", reason="its next life was not ready within placement.deadline_s = 0 s", died=True)]
    assert waiting.said == [] and waiting.joining.stranded() == []
    ray_session.kill(waiting.process)


def test_what_waits_outside_of_its_bundle_is_asked_for_again_when_it_is_told(bundles, ray_session):
    outside, inside = Waiting(600.0, is_outside=True, **NEVER), Waiting(600.0, **NEVER)
    until = time.monotonic() + DEADLINE_S
    while not outside.joining.stranded():
        assert time.monotonic() < until
    assert inside.joining.stranded() == []
    outside.joining.drop({"block0"})
    assert outside.joining.refs == []
    for waiting in (outside, inside):
        ray_session.kill(waiting.process)
