"""Credentials are neither written down with a run nor replaced by what stands there in their place."""

import pytest
from omegaconf import OmegaConf

from actors.errors import UserError
from orchestrator import api
from orchestrator.config import changed, config_from_mapping, plain_values, resolved
from orchestrator.config.credentials import REDACTED, redacted
from orchestrator.run_directory import RunDirectory
from tests.runs import SMALL, config_of, run

HIDDEN = (
    "token", "tokens", "api_token", "api_key", "api_keys", "apikey", "apiKey", "accessKey", "aws_secret_key",
    "secret", "client-secret", "PASSWORD", "passwd", "db_passwd", "passphrase", "auth", "Authorization", "credentials",
)  # fmt: skip
KEPT = ("monkey", "keyboard", "tokenizer", "author", "authors", "secretary", "compass", "passes", "turnkey_kind")


def with_options(config, **options):
    """A config whose data has options that no check has seen."""
    return config.model_copy(update={"data": config.data.model_copy(update={"options": options})})


@pytest.mark.parametrize("key", HIDDEN)
@pytest.mark.parametrize("value", ["t0", ["t0", {"of": "t0"}], {"user": "t0"}])
def test_credentials_are_redacted_wherever_they_stand(key, value):
    found = redacted({"data": [{key: value, "name": "kept"}]})
    assert "t0" not in str(found) and REDACTED in str(found) and found["data"][0]["name"] == "kept"


@pytest.mark.parametrize("key", KEPT)
def test_lookalikes_are_kept(key):
    assert redacted({key: "t0"}) == {key: "t0"}


def test_a_number_of_tokens_is_kept_and_a_password_of_digits_is_not():
    plain = {"tokens": 4096, "num_keys": 3, "password": 1234, "is_secret": True, "key": None}
    assert redacted(plain) == plain | {"password": REDACTED}


ADDRESSES = [
    "s3://key:secret@bucket/runs", "s3://key:sec/ret@bucket/runs", "simplecache::s3://key:secret@bucket/runs",
    "https://host/runs?access_token=secret", "https://host/runs?a=1&apiKey=secret", "https://host/x?sig=secret",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_with_a_credential_is_refused_for_checkpoints_and_redacted_elsewhere(tmp_path, address):
    with pytest.raises(UserError, match=r"checkpoint\.uri: got an address with a password in it") as caught:
        config_of(tmp_path / "run", checkpoint={"uri": address})
    assert "secret" not in str(caught.value)
    assert redacted({"root": [address]}) == {"root": [REDACTED]}


@pytest.mark.parametrize("address", ["s3://bucket/a:b@c", "http://host:8080/a@b", "memory://x", "gs://b/x?page=2"])
def test_an_address_without_a_credential_is_taken(tmp_path, address):
    assert config_of(tmp_path / "run", checkpoint={"uri": address}).checkpoint.uri == address
    assert redacted({"root": address}) == {"root": address}


def test_what_control_changes_leaves_credentials_as_they_were(tmp_path, catalog):
    options = {"classes": 4, "shape": [2, 8, 8], "size": 176}
    address = "https://host/data?access_token=t0"
    config = config_of(tmp_path / "run", data={"root": address, **options})
    after = changed(config, {"buffers.capacity": 9}, catalog)
    assert (after.data.root, after.buffers.capacity) == (address, 9)
    assert resolved(after)["data"]["root"] == REDACTED and plain_values(after)["data"]["root"] == address


def test_a_run_is_not_gone_on_with_what_stands_in_place_of_its_credentials(tmp_path, monkeypatch):
    folder, address = tmp_path / "run", "https://host/data?access_token=t0"
    finished = run(folder, data={"root": address}, training={"epochs": 1})
    assert "t0" not in "".join(file.read_text() for file in folder.glob("*.yaml"))
    for command in (api.resume, api.evaluate):
        with pytest.raises(UserError, match=r"data\.root: got '<redacted>', .* with a run, expected the value; give"):
            command(folder)
    assert api.verify(folder).usable == 10
    again = config_from_mapping({**SMALL, "run_dir": str(folder), "training": {"epochs": 1}, "data": SMALL["data"] |
                                 {"root": address}}, api.find_catalog())  # fmt: skip
    assert api.train(again, progress=False).weights_sha256 == finished.weights_sha256
    held = RunDirectory.open(folder).config_yaml
    facts = OmegaConf.load(held)
    facts.data.root = "${oc.env:DATA_ADDRESS}"
    held.write_text(OmegaConf.to_yaml(facts))
    monkeypatch.setenv("DATA_ADDRESS", address)
    assert api.resume(folder, progress=False).weights_sha256 == finished.weights_sha256
