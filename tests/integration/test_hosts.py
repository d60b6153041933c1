"""Blocks on hosts of their own: network namespaces with addresses, a Ray node in each, cables that are cut.

Host 0 has the head and the driver. A host that is silent for about 12 s counts as dead here.
"""

import json
import time

import pytest
import yaml

from orchestrator.config import resolved
from tests.integration.test_ending import read_status, wait_until
from tests.network_hosts import why_not
from tests.ray_hosts import RayHosts
from tests.runs import block_weights, config_of, run

NOT_HERE = why_not()
pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(NOT_HERE is not None, reason=str(NOT_HERE)),
    pytest.mark.timeout(400),
]

SHORT_CUT_S = 5.0
RUN_DEADLINE_S = 200.0
TRAINED = {
    # messages above Ray's inline limit of 100 KB, which go from one object store to the other
    "data": {"size": 704, "batch_size": 64},
    "network": {"channels": [16, 8, 8]},
    "rule": {"name": "backprop"},
    "schedule": {"delay_per_hop": 2},
    "training": {"epochs": 30},
    "evaluation": {"every_epochs": 0},
}
SPREAD = {
    "placement": {"backend": "ray", "strategy": "SPREAD", "cpus_per_block": 1},
    "checkpoint": {"every_batches": 40},
    "faults": {"pad": 4},
}


@pytest.fixture(scope="module")
def hosts():
    hosts = RayHosts(3)
    try:
        hosts.hosts.build()
        yield hosts
    finally:
        hosts.end()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The weights of the run on one host, in one process."""
    return block_weights(run(tmp_path_factory.mktemp("alone") / "run", **TRAINED))


class Spread:
    """A run over the hosts, whose blocks' hosts are known while it trains."""

    def __init__(self, hosts, name, *, under="", program="orchestrator", words=("train",), **sections):
        hosts.start()
        self.hosts, self.folder = hosts, hosts.folder / under / name
        self.log, path = f"{name}.log", hosts.folder / f"{name}.yaml"
        config = config_of(self.folder, **{**TRAINED, **SPREAD, **sections})
        path.write_text(yaml.safe_dump(resolved(config)))
        self.process = hosts.run(["-m", program, *words, str(path)], self.log)

    def placed(self):
        """Wait until it trains; the host of every block."""
        self.wait_for(1)
        return [self.hosts.host_of(block["pid"]) for block in read_status(self.folder)["blocks"]]

    def wait_for(self, batch):
        def has_come():
            assert self.process.poll() is None, self.hosts.logs()
            return read_status(self.folder)["batch"] >= batch

        wait_until(has_come, f"batch {batch}")

    def summary(self):
        """Wait for the end; the result."""
        assert self.process.wait(RUN_DEADLINE_S) == 0, self.hosts.logs()
        return json.loads((self.folder / "summary.json").read_text())

    def refused(self):
        """Wait for the end; the one sentence of it."""
        assert self.process.wait(RUN_DEADLINE_S) == 2, self.hosts.logs()
        said = (self.hosts.folder / self.log).read_text().splitlines()
        [sentence] = [line for line in said if line.startswith("unlocked: ")]
        return sentence


def weights(summary):
    return [(block["weights_sha256"], block["auxiliary_sha256"]) for block in summary["blocks"]]


def actors_of(summary, kind):
    return {event["actor"] for event in summary["events"] if event["event"] == kind}


def test_a_host_cut_off_for_seconds_loses_nothing_and_one_that_is_switched_off_is_replaced(hosts, reference):
    spread = Spread(hosts, "off")
    placed = spread.placed()
    assert len(set(placed)) > 1, "blocks on one host only"
    far = next(host for host in placed if host != 0)
    spread.wait_for(30)
    hosts.hosts.cut(far)
    time.sleep(SHORT_CUT_S)
    before = read_status(spread.folder)
    hosts.hosts.mend(far)
    spread.wait_for(before["batch"] + 40)
    after = read_status(spread.folder)
    assert [block["pid"] for block in after["blocks"]] == [block["pid"] for block in before["blocks"]]
    hosts.hosts.power_off(far)
    summary = spread.summary()
    lost = {f"block{index}" for index, host in enumerate(placed) if host == far}
    assert lost <= actors_of(summary, "lost") <= lost | {"source"}
    assert actors_of(summary, "recovered") == actors_of(summary, "lost")
    assert weights(summary) == reference


def test_the_blocks_of_a_host_cut_off_for_longer_than_the_time_out_move_and_their_zombies_change_nothing(
    hosts, reference
):
    spread = Spread(hosts, "cut")
    placed = spread.placed()
    far = next(host for host in placed if host != 0)
    moved = [index for index, host in enumerate(placed) if host == far]
    spread.wait_for(30)
    pids = [block["pid"] for block in read_status(spread.folder)["blocks"]]
    hosts.hosts.cut(far)

    def have_moved():
        assert spread.process.poll() is None, hosts.logs()
        now = [block["pid"] for block in read_status(spread.folder)["blocks"]]
        return len(now) == len(pids) and all(now[index] != pids[index] for index in moved)

    wait_until(have_moved, "other processes for the blocks of the host that was cut off")
    hosts.hosts.mend(far)
    summary = spread.summary()
    assert {f"block{index}" for index in moved} <= actors_of(summary, "recovered")
    assert weights(summary) == reference
    wait_until(lambda: hosts.has_ended(far), "the end of the node that was given up")


def test_a_host_that_announces_its_end_is_left_before_it_comes_and_that_is_no_failure(hosts, reference):
    spread = Spread(hosts, "drained", recovery={"max_failures": 0}, checkpoint={"every_s": 600}, faults={"pad": 10})
    placed = spread.placed()
    far = next(host for host in placed if host != 0)
    spread.wait_for(30)
    hosts.terminate(far)
    summary = spread.summary()
    left = {f"block{index}" for index, host in enumerate(placed) if host == far}
    assert left <= actors_of(summary, "moved") <= left | {"source"} and not actors_of(summary, "lost")
    assert all(event["position"] >= 0 for event in summary["events"] if event["event"] == "moved"), "no snapshot before"
    assert weights(summary) == reference
    wait_until(lambda: hosts.has_ended(far), "the end that was announced")


@pytest.fixture
def why_no_netem(hosts):
    """The hosts' wires are slow and lossy during the test; or why this kernel can't."""
    why = [hosts.hosts.delay(host, "delay", "50ms", "loss", "1%") for host in range(3)]
    yield next(filter(None, why), None)
    for host in range(3):
        hosts.hosts.hurry(host)


def test_fifty_milliseconds_and_one_lost_message_in_a_hundred_change_no_weight(hosts, why_no_netem, tmp_path):
    """Through the kernel where it can, else through the faulty transport."""
    short = {"training": {"epochs": 10}}
    slow = {"program": "tests.far_wire", "words": ()} if why_no_netem else {}
    spread = Spread(hosts, "slow", faults={}, **short, **slow)
    assert len(set(spread.placed())) > 1
    assert weights(spread.summary()) == block_weights(run(tmp_path / "alone", **{**TRAINED, **short}))
    if slow:
        fired = (hosts.folder / spread.log).read_text()
        assert "'drop': " in fired and "'delay': " in fired


def test_a_run_directory_that_a_host_does_not_see_is_refused_before_training(hosts):
    sentence = Spread(hosts, "run", under="hidden").refused()
    assert f"run_dir: {hosts.hidden / 'run'} is not visible on node" in sentence
    assert "give a folder that every node mounts at the same path" in sentence


def test_another_version_of_torch_on_a_host_is_refused_before_training(hosts):
    other = hosts.packages / "torch-0.4.1.dist-info"
    other.mkdir()
    try:
        (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.4.1\n")
        sentence = Spread(hosts, "versions").refused()
    finally:
        (other / "METADATA").unlink()
        other.rmdir()
    assert "torch: got 0.4.1 on node" in sentence and "the same version on every node" in sentence
