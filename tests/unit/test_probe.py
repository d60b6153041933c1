"""What a node must share with the driver: each difference is refused in one sentence that says what to do."""

import os
import platform

import pytest

from orchestrator.cluster import probe
from orchestrator.cluster.probe import marked, refusal, versions

NODE = "0123456789abcdef"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(probe, "SEEN_WITHIN_S", 0.05)
    monkeypatch.setattr(probe, "LOOK_EVERY_S", 0.01)


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def assert_one_sentence(why, *words):
    assert why is not None and "\n" not in why and all(word in why for word in words), why
    assert f"on node 0123456789ab ({platform.node()}), where block1 is to run" in why


def test_a_process_that_sees_what_the_driver_sees_may_run(run_dir):
    with marked(run_dir) as (mark, text):
        seen = probe.probe(mark, text)
        assert refusal("block1", NODE, seen, run_dir) is None
    assert list(run_dir.iterdir()) == [], "the mark is gone"


@pytest.mark.parametrize("name", ["Python", "Ray", "torch"])
def test_another_version_is_refused(run_dir, name):
    with marked(run_dir) as (mark, text):
        seen = probe.probe(mark, text) | {name: "0.4.1"}
    why = refusal("block1", NODE, seen, run_dir)
    assert_one_sentence(
        why,
        f"{name}: got 0.4.1 ",
        f"expected the driver's {versions()[name]}",
        "install the same version on every node",
    )


def test_the_last_number_of_python_and_the_kind_of_torch_s_build_may_differ(monkeypatch):
    found = {"ray": "2.60.0", "torch": "2.14.1+cu128"}
    monkeypatch.setattr(probe.metadata, "version", found.__getitem__)
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "12", "11"))
    assert versions() == {"Python": "3.12", "Ray": "2.60.0", "torch": "2.14.1"}


def test_a_run_directory_that_is_not_there_is_refused(run_dir):
    with marked(run_dir) as (mark, text):
        seen = probe.probe(mark.replace("/run/", "/elsewhere/"), text)
    why = refusal("block1", NODE, seen, run_dir)
    assert_one_sentence(why, f"run_dir: {run_dir} is not visible ", "every node mounts", "run_dir=/shared/run")


def test_another_folder_of_the_same_name_is_not_taken_for_the_run_directory(run_dir):
    with marked(run_dir) as (mark, _):
        seen = probe.probe(mark, "what another driver has written")
    assert_one_sentence(refusal("block1", NODE, seen, run_dir), "is not visible")


def test_a_run_directory_that_can_t_be_written_is_refused(run_dir, monkeypatch):
    asked = []

    def access(path, mode):
        asked.append((path, mode))
        return False

    monkeypatch.setattr(os, "access", access)  # root may write anywhere
    with marked(run_dir) as (mark, text):
        seen = probe.probe(mark, text)
    assert_one_sentence(refusal("block1", NODE, seen, run_dir), f"run_dir: {run_dir} can't be written ")
    assert asked == [(run_dir, os.W_OK | os.X_OK)]
