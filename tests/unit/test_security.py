"""What a run directory or a checkpoint of somebody else's can't do to its reader."""

import os
import stat

import pytest
from omegaconf import OmegaConf
from safetensors.torch import save

from actors.errors import RunError, UserError
from actors.shard import MAX_HEADER_BYTES, ShardFile, read_shard
from actors.storage import open_storage
from orchestrator import api
from orchestrator.run_directory import RunDirectory
from tests.runs import config_of

FACTORIES = {
    "network": {"factory": "tests.counting_rule:never_called", "name": None},
    "rule": {"factory": "tests.counting_rule:Counting", "name": None},
    "objective": {"factory": "tests.counting_rule:NeverImported", "name": None},
    "data": {"factory": "tests.counting_rule:numbered", "name": None},
}  # fmt: skip


def run_of(folder, catalog, section=None):
    """A run directory that has never been trained; its config names a factory in a section."""
    directory = RunDirectory.create(config_of(folder))
    if section is not None:
        text = directory.config_yaml.read_text()
        wanted = FACTORIES[section]["factory"]
        directory.config_yaml.write_text(text.replace(f"{section}:\n", f"{section}:\n  factory: {wanted}\n"))
    return directory


def owned_by(monkeypatch, uid):
    monkeypatch.setattr(os, "getuid", lambda: uid)


@pytest.mark.parametrize("section", FACTORIES)
@pytest.mark.parametrize("command", ["evaluate", "export", "resume", "verify"])
def test_a_factory_of_another_users_run_is_never_imported(tmp_path, catalog, monkeypatch, section, command):
    directory = run_of(tmp_path / "run", catalog, section)
    owned_by(monkeypatch, os.getuid() + 1)
    arguments = [directory.path, tmp_path / "x.safetensors"] if command == "export" else [directory.path]
    with pytest.raises(UserError, match=rf"belongs to user \d+, and its {section}\.factory would be imported"):
        getattr(api, command)(*arguments)


@pytest.mark.parametrize(
    ("line", "section"),
    [("rule: ${data.options}", "rule"), ("rule: {factory: '${data.options.factory}'}", "rule"),
     ("objective: ${data.options}", "objective")],
)  # fmt: skip
def test_a_factory_that_only_an_interpolation_gives_is_never_imported(tmp_path, catalog, monkeypatch, line, section):
    directory = run_of(tmp_path / "run", catalog)
    held = OmegaConf.to_container(OmegaConf.load(directory.config_yaml))
    del held[section]
    held["data"]["options"] = {"factory": "tests.counting_rule:Counting"}
    directory.config_yaml.write_text(f"{OmegaConf.to_yaml(held)}{line}\n")
    owned_by(monkeypatch, os.getuid() + 1)
    monkeypatch.setattr("orchestrator.catalog.import_plugin", lambda *args: pytest.fail(f"{args} was imported"))
    with pytest.raises(UserError, match=rf"belongs to user \d+, and its {section}\.factory would be imported"):
        directory.config(catalog)


def test_another_users_run_without_factories_can_be_read(tmp_path, catalog, monkeypatch):
    directory = run_of(tmp_path / "run", catalog)
    owned_by(monkeypatch, os.getuid() + 1)
    assert directory.config(catalog).network.name == "cnn"


def test_a_snapshots_header_above_the_cap_is_refused_before_it_is_parsed(tmp_path):
    data = (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}"
    with pytest.raises(RunError, match=r"its header has \d+ bytes, expected at most"):
        read_shard(open_storage(str(tmp_path)), written(tmp_path, data))


def test_a_snapshot_that_holds_code_in_place_of_state_is_refused(tmp_path):
    data = save({}, metadata={"state": "__import__('os').system('true')"})
    with pytest.raises(RunError, match="not a snapshot of a block"):
        read_shard(open_storage(str(tmp_path)), written(tmp_path, data))


def written(folder, data):
    import hashlib

    (folder / "shard").write_bytes(data)
    return ShardFile("shard", hashlib.sha256(data).hexdigest(), len(data))


def test_checkpoints_in_a_folder_of_their_own_are_private(tmp_path):
    storage = open_storage(str(tmp_path / "shared" / "run"))
    storage.write("batch-000000001/manifest.json", b"{}")
    assert stat.S_IMODE((tmp_path / "shared" / "run").stat().st_mode) == 0o700


def test_a_run_directory_that_its_owner_has_opened_to_others_stays_open(tmp_path):
    directory = RunDirectory.create(config_of(tmp_path / "run"))
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    directory.path.chmod(0o750)
    assert stat.S_IMODE(RunDirectory.create(config_of(tmp_path / "run")).path.stat().st_mode) == 0o750
