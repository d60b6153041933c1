"""Synthetic inputs: no block waits for another, and evaluations see real activations and their position's weights."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from actors.datasets.loading import load_data
from actors.errors import MispairedMessage
from actors.messages import Kind, Message
from actors.networks.body import Body
from actors.networks.network import network_layers
from orchestrator.api import export
from orchestrator.specs import data_spec, network_spec
from tests.contract.plugin_chain import chain_config
from tests.methods.hand_driven import HandDrivenChain
from tests.methods.recorded_chain import RecordedChain
from tests.runs import config_of, run

RULE = {"name": "synthetic_gradients", "synthetic_inputs": True}
OPTIMIZER = {"name": "sgd", "lr": 0.02, "momentum": 0.9, "synthesizer": {"name": "adam", "lr": 0.003}}
MLP = {"name": "mlp", "widths": [24, 24, 24], "batch_norm": True}
CNN = {"name": "cnn", "channels": [6, 8, 8], "pool_after": [2]}


def config(blocks=3, delay_per_hop=2, input_delay=1, network=MLP, optimizer=OPTIMIZER, **sections):
    schedule = {"name": "pipeline", "delay_per_hop": delay_per_hop, "input_delay": input_delay}
    network = {**network, "blocks": blocks}
    return chain_config(rule=RULE, network=network, schedule=schedule, optimizer=optimizer, **sections)


# ---------------------------------------------------------------- the forward lock is gone


def test_a_block_has_updated_on_a_batch_that_the_block_below_has_never_seen():
    """Block 1 gets no batch at all; block 2 trains on batch 0 and then waits for block 1's activation of it."""
    chain = HandDrivenChain(config(), 6)
    before = chain.blocks[2].digests()
    chain.stall_before_forward(1, 0)
    assert chain.advance() == [3, 0, 1], "block 0 stops where feedback of its first batch is due"
    assert chain.blocks[2].digests() != before
    chain.release()
    assert chain.advance() == [6, 6, 6]


@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
def test_a_block_runs_on_its_models_prediction_of_its_input(network):
    chain = HandDrivenChain(config(network=network), 1)
    first, block = chain.blocks[0], chain.blocks[1]
    message = chain.message(0, False)
    raw = message.tensors["h"]
    with torch.no_grad():
        predicted = block.rule.input_model(raw)
    first.now(message)
    block.now(message)
    assert torch.equal(block.open[0].entered, predicted)
    assert torch.equal(first.open[0].entered, raw), "the first block has the real input"
    assert block.rule.input_model is not None and first.rule.input_model is None


# ---------------------------------------------------------------- what comes late


@pytest.mark.parametrize(("delay_per_hop", "input_delay"), [(0, 1), (2, 1), (2, 3), (0, 4), (1, 2)])
def test_a_batch_teaches_once_with_its_own_targets_whatever_comes_first(delay_per_hop, input_delay):
    chain, taught = RecordedChain(config(4, delay_per_hop, input_delay)), [[] for _ in range(4)]
    for block, found in zip(chain.blocks, taught, strict=True):
        watch_learning(block, found)
    chain.train(0, 8)
    for j, found in enumerate(taught):
        late = [1 + delay_per_hop] * (j < 3) + [input_delay] * (j > 0)
        assert [batch_id for batch_id, *_ in found] == list(range(8))
        assert chain.blocks[j].synthesizer_updates == chain.blocks[j].updates == 8
        for batch_id, version, kept in found:
            assert version == min(8, batch_id + max(late))
            assert kept.keys() == {*["gradient"] * (j < 3), *["activation"] * (j > 0)}
            if j > 0:
                assert kept["activation"] is chain.sent[f"block{j - 1}->block{j}"][batch_id].tensors["h"]
            if j < 3:
                sent = chain.sent[f"block{j + 1}->block{j}:feedback{j + 1}"][batch_id]
                assert kept["gradient"] is sent.tensors["gradient"]


def watch_learning(block, found):
    def learn(p, learn=block.rule._learn):
        sent = learn(p)
        if sent.taught:
            found.append((p.batch.batch_id, block.version, dict(p.kept)))
        return sent

    block.rule._learn = learn


def test_accumulated_batches_teach_as_often_as_they_update():
    chain = RecordedChain(config(training={"epochs": 1, "accumulate": 3}))
    chain.train(0, 8)
    assert [block.synthesizer_updates for block in chain.blocks] == [3, 3, 3]
    assert [block.updates for block in chain.blocks] == [3, 3, 3]


def test_the_predecessors_activation_of_another_batch_raises():
    chain = HandDrivenChain(config(), 1)
    block = chain.blocks[1]
    block.now(chain.message(0, False))
    wrong = Message(Kind.ACTIVATION, 1, tensors={"h": torch.zeros(32, 24)})
    with pytest.raises(MispairedMessage, match=r"predecessor's activation is for batch 1, expected batch 0"):
        block.late_activation(wrong, 0)
    assert all(p.grad is None for p in block.rule.input_model.parameters())


@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
def test_predicted_inputs_come_closer_to_the_real_ones_while_the_blocks_keep_still(network):
    still = {**OPTIMIZER, "lr": 0.0}
    chain, unexplained = RecordedChain(config(network=network, optimizer=still, training={"epochs": 6})), []
    rule = chain.blocks[2].rule

    def late_activation(p, h, late_activation=rule.late_activation):
        with torch.no_grad():
            error = (rule.input_model(p.batch.raw_input) - h).square().sum()
        unexplained.append(float(error / (h - h.mean(dim=0)).square().sum()))
        return late_activation(p, h)

    rule.late_activation = late_activation
    chain.train(0, 48)
    assert unexplained[0] > 1 and max(unexplained[-4:]) < 0.95, "parts of the real input's variance"


# ---------------------------------------------------------------- depths, positions, buffers


@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_any_number_of_blocks_trains_to_the_last_batch_and_leaves_nothing_open(blocks, network):
    chain = RecordedChain(config(blocks, network=network))
    chain.train(0, 6)
    for j, block in enumerate(chain.blocks):
        learns = blocks > 1
        assert (block.version, block.updates, block.synthesizer_updates) == (6, 6, 6 * learns), j
        assert not block.open


OWN = {"rule": RULE, "optimizer": OPTIMIZER}


def evaluations(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {e["batch"]: (e["accuracy"], e["loss"]) for e in lines if e["kind"] == "evaluation"}


@pytest.mark.parametrize("input_delay", [1, 3])
def test_an_evaluation_in_passing_sees_what_a_run_that_stops_there_sees(tmp_path, input_delay):
    """More evaluation batches than an edge holds: 16 on edges of 1 and of 4."""
    own = {**OWN, "schedule": {"delay_per_hop": 2, "input_delay": input_delay}}
    for epochs in (1, 2):
        run(tmp_path / f"to {epochs}", **own, training={"epochs": epochs}, evaluation={"every_epochs": 0})
    run(tmp_path / "through", **own, evaluation={"every_epochs": 1}, buffers={"capacity": 1})
    short, long = evaluations(tmp_path / "to 1"), evaluations(tmp_path / "to 2")
    assert evaluations(tmp_path / "through") == short | long
    assert short[10] != long[21], "the weights of the two positions differ"


def test_evaluation_runs_the_plain_network_on_real_activations(tmp_path):
    """The exported layers alone, one after another, give accuracy and loss that the chain of actors reported."""
    own = {**OWN, "schedule": {"delay_per_hop": 2, "input_delay": 1}, "training": {"epochs": 1}}
    summary = run(tmp_path / "run", **own, evaluation={"every_epochs": 0})
    export(tmp_path / "run", tmp_path / "network.safetensors")
    config = config_of(tmp_path / "run", **own)
    data = load_data(data_spec(config))
    layers = network_layers(network_spec(config), data.input_shape, data.num_classes, config.seed)
    network = Body(layers, seed=config.seed).eval()
    network.load_named_state(load_file(tmp_path / "network.safetensors"))
    with torch.no_grad():
        scores = network(data.test.inputs)
    correct = (scores.argmax(dim=1) == data.test.labels).double().mean()
    assert summary.test_accuracy == pytest.approx(float(correct))
    assert summary.test_loss == pytest.approx(float(cross_entropy(scores, data.test.labels)), rel=1e-5)


def test_lockstep_drives_it_too(tmp_path):
    own = {**OWN, "schedule": {"name": "lockstep", "input_delay": 1}}
    summary = run(tmp_path / "run", **own, training={"epochs": 1})
    assert [block["updates"] for block in summary.blocks] == [11, 11, 11]
