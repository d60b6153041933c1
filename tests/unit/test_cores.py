"""Processes of one machine share its cores out without a word."""

import os
import subprocess
import sys
import threading

import pytest

from actors.cores import Cores
from orchestrator.config import config_from_mapping
from orchestrator.config.placing import Place, place_of
from orchestrator.specs import block_spec
from tests.conftest import ROOT
from tests.runs import SMALL

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores can be chosen on Linux only")
HOLD = """
import os, sys
from pathlib import Path
from actors.cores import Cores
cores = Cores(Path(sys.argv[1]))
print(*sorted(cores.claim(1)), sorted(os.sched_getaffinity(0)), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def free():
    """The cores of this process; it gets them back."""
    before = os.sched_getaffinity(0)
    yield before
    os.sched_setaffinity(0, before)


def test_two_processes_get_different_cores_and_the_second_keeps_its_own_when_the_first_dies(tmp_path, free):
    if len(free) < 2:
        pytest.skip("one core only")
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        mine, other = (process.stdout.readline().split()[0] for process in (first, second))
        assert mine != other
        first.kill()
        first.wait(30)
        cores = Cores(tmp_path)
        assert cores.claim(1) == ({int(mine)} if len(free) == 2 else {min(free - {int(other)})})
        cores.release()
        second.kill()


def test_where_too_few_are_free_a_process_runs_on_all_as_before(tmp_path, free):
    cores = Cores(tmp_path)
    assert cores.claim(len(free) + 1) == frozenset()
    assert os.sched_getaffinity(0) == free
    assert Cores(tmp_path).claim(len(free)) == free, "none stays claimed"


def test_threads_that_run_already_are_bound_too_and_freed_again(tmp_path, free):
    over, ids = threading.Event(), []
    thread = threading.Thread(target=lambda: (ids.append(threading.get_native_id()), over.wait(30)))
    thread.start()
    cores = Cores(tmp_path)
    try:
        got = cores.claim(1)
        assert os.sched_getaffinity(ids[0]) == os.sched_getaffinity(0) == got and len(got) == 1
        cores.release()
        assert os.sched_getaffinity(ids[0]) == free
    finally:
        cores.release()
        over.set()
        thread.join(30)


def test_a_block_s_own_placement_lies_over_that_of_all(catalog):
    placement = {
        "gpus_per_block": 0.5, "labels": {"rack": "a"}, "accelerator_type": "L4",
        "blocks": {
            1: {"gpus": 0, "labels": {}}, 2: {"cpus": 3, "resources": {"x": 1}},
            3: {"gpus": 0, "accelerator_type": "T4"},
        },
    }  # fmt: skip
    network = {**SMALL["network"], "channels": [6, 8, 8, 8], "blocks": 4}
    config = config_from_mapping({**SMALL, "network": network, "placement": placement}, catalog)
    assert place_of(config.placement, 0) == Place("auto", 0.5, "L4", {"rack": "a"}, {})
    assert place_of(config.placement, 1) == Place("auto", 0, None, {}, {}), "a kind of GPU is for blocks that have one"
    assert place_of(config.placement, 2) == Place(3, 0.5, "L4", {"rack": "a"}, {"x": 1})
    assert place_of(config.placement, 3) == Place("auto", 0, "T4", {"rack": "a"}, {}), "unless it is its own"


def test_a_block_without_a_gpu_computes_on_the_processor(catalog):
    from orchestrator.plan import make_plan

    placement = {"backend": "ray", "gpus_per_block": 1, "blocks": {1: {"gpus": 0}}, "pin_cpus": True}
    config = config_from_mapping({**SMALL, "placement": placement}, catalog)
    machines = [block_spec(config, make_plan(config), index, "run").machine for index in range(3)]
    assert [machine.device for machine in machines] == ["cuda:0", "cpu", "cuda:0"]
    assert all(machine.pins for machine in machines)
