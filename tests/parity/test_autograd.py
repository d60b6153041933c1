"""P14, T02: back-propagation through the actors equals plain autograd on the assembled network."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from actors.datasets.batches import TrainBatches
from actors.datasets.loading import load_data
from actors.networks.weights import tensor_digests
from orchestrator.network_file import assemble
from orchestrator.specs import data_spec
from orchestrator.summary import weights_sha256
from tests.runs import Replacing, config_of, run

OPTIMIZERS = {
    "sgd": ({"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}, torch.optim.SGD),
    "adam": ({"name": "adam", "lr": 0.003, "betas": [0.8, 0.99]}, torch.optim.Adam),
}
NETWORKS = {
    "cnn": {"name": "cnn", "channels": [6, 8, 8], "pool_after": [2], "blocks": 3},
    "cnn with dropout": {"name": "cnn", "channels": [6, 8], "dropout": 0.5, "blocks": 3},
    "mlp": {"name": "mlp", "widths": [20, 20], "blocks": 2},
    "vgg": {"name": "vgg", "width": 0.1, "blocks": 5},
    "resnet": {"name": "resnet", "depth": 8, "width": 4, "blocks": 5},
}


def plain_training(config, *, accumulate=1):
    """Train the assembled network as anyone would in plain PyTorch; return its state and losses."""
    data = load_data(data_spec(config))
    network = assemble(config, data.input_shape, data.num_classes)
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in config.optimizer.options.items()}
    kind = OPTIMIZERS[config.optimizer.name][1]
    optimizer = kind(network.parameters(), lr=config.optimizer.lr, **options)
    batches = TrainBatches(data, data_spec(config), config.training.epochs)
    network.train()
    for batch in batches.stream():
        cross_entropy(network(batch.inputs, batch.batch_id), batch.labels).backward()
        if (batch.batch_id + 1) % accumulate == 0 or batch.batch_id == batches.num_batches - 1:
            if accumulate > 1:
                for parameter in network.parameters():
                    parameter.grad.div_((batch.batch_id % accumulate) + 1)
            optimizer.step()
            optimizer.zero_grad()
    return network, batches.num_batches


def digest(network):
    return weights_sha256(tensor_digests(network.named_state()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_backprop_through_actors_equals_autograd(tmp_path, network, optimizer):
    sections = {
        "rule": {"name": "backprop"},
        "network": Replacing(NETWORKS[network]),
        "optimizer": Replacing(OPTIMIZERS[optimizer][0]),
    }
    config = config_of(tmp_path / "plain", **sections)
    expected, num_updates = plain_training(config)
    assert num_updates >= 20
    assert run(tmp_path / "actors", **sections).weights_sha256 == digest(expected)


@pytest.mark.parametrize("backend", ["in_process", "ray"])
def test_backprop_over_each_backend_equals_autograd(tmp_path, ray_cluster, backend):
    config = config_of(tmp_path / "plain", rule={"name": "backprop"})
    cluster = ray_cluster if backend == "ray" else None
    got = run(tmp_path / "actors", cluster=cluster, rule={"name": "backprop"})
    assert got.weights_sha256 == digest(plain_training(config)[0])


@pytest.mark.parametrize("rule", ["local", "backprop"])
def test_one_block_equals_plain_training(tmp_path, rule):
    sections = {"rule": {"name": rule}, "network": {"blocks": 1}}
    expected, _ = plain_training(config_of(tmp_path / "plain", **sections))
    assert run(tmp_path / "actors", **sections).weights_sha256 == digest(expected)


def test_accumulated_gradients_equal_plain_accumulation(tmp_path):
    sections = {"rule": {"name": "backprop"}, "training": {"accumulate": 3}}
    expected, _ = plain_training(config_of(tmp_path / "plain", **sections), accumulate=3)
    summary = run(tmp_path / "actors", **sections)
    assert summary.weights_sha256 == digest(expected)
    assert [block["updates"] for block in summary.blocks] == [8, 8, 8]  # 22 batches, the rest of one included


def test_backprop_weights_do_not_depend_on_cuts(tmp_path):
    whole = run(tmp_path / "whole", rule={"name": "backprop"}, network={"blocks": 1})
    for blocks in (2, 3, 4):
        got = run(tmp_path / str(blocks), rule={"name": "backprop"}, network={"blocks": blocks})
        assert got.weights_sha256 == whole.weights_sha256
