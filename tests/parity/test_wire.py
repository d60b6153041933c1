"""Under a wire codec the actors' run over Ray equals the one in process, bit for bit, and says what it has lost."""

import json
from pathlib import Path

import pytest

from tests.runs import block_weights, run


@pytest.mark.parametrize("codec", ["bf16", "fp16", "int8"])
@pytest.mark.parametrize("rule", ["local", "backprop"])
def test_ray_equals_in_process_under_a_codec_and_differs_from_fp32(tmp_path, ray_cluster, codec, rule):
    plain = run(tmp_path / "plain", rule={"name": rule})
    here = run(tmp_path / "here", rule={"name": rule}, wire=codec)
    there = run(tmp_path / "there", cluster=ray_cluster, rule={"name": rule}, wire=codec)
    assert block_weights(here) == block_weights(there)
    assert block_weights(here)[1:] != block_weights(plain)[1:]
    for edge in json.loads(Path(tmp_path, "there/summary.json").read_text())["edges"]:
        shown, error = edge["wire"], edge["wire"]["relative_error"]
        if edge["name"].startswith("source"):
            assert shown == {"codec": "fp32", "relative_error": {"mean": 0.0, "max": 0.0, "messages": 0}}
        else:
            assert shown["codec"] == codec and error["messages"] >= 2
            assert 1e-5 < error["mean"] <= error["max"] < {"bf16": 0.004, "fp16": 0.001, "int8": 0.05}[codec]


def test_fewer_bits_travel_on_the_edge_that_is_named(tmp_path):
    plain, coded = (
        run(tmp_path / str(index), wire=wire, evaluation={"splits": []})
        for index, wire in enumerate([None, {"block0->block1": "int8"}])
    )
    before, after = ({edge["name"]: edge["bytes"] for edge in summary.edges} for summary in (plain, coded))
    assert after.pop("block0->block1") < 0.3 * before.pop("block0->block1")
    assert before == after


def test_fp32_changes_nothing(tmp_path):
    plain, fp32 = run(tmp_path / "plain"), run(tmp_path / "fp32", wire="fp32")
    assert block_weights(plain) == block_weights(fp32)
    assert [edge["bytes"] for edge in plain.edges] == [edge["bytes"] for edge in fp32.edges]
