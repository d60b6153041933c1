"""T08: linear synthetic gradients and linear regression (Czarnecki et al. 2017, arXiv:1703.00522)."""

import torch

from actors.datasets.loading import load_data
from orchestrator.specs import data_spec
from tests.contract.plugin_chain import Chain, chain_config
from tests.methods.linear_regression import best_error, squared_error

PARTS = "tests.methods.linear_regression"
BATCHES = 1005


def trained(conditioned):
    """The mean error on the training set before and after, and the least-squares optimum."""
    config = chain_config(
        data={"name": "generated", "shape": [1, 1, 10], "classes": 3, "size": 480, "batch_size": 32, "noise": 1.0},
        network={"factory": f"{PARTS}:network", "cuts": ["1"]},
        rule={"name": "synthetic_gradients", "conditioned": conditioned, "synthesizer": {"hidden_layers": 0}},
        objective={"factory": f"{PARTS}:SquaredError"},
        optimizer={"name": "sgd", "lr": 0.05, "schedule": {"name": "cosine"}},
        training={"epochs": BATCHES // 15},
    )
    chain, data = Chain(config), load_data(data_spec(config))
    split = data.train

    def error():
        with torch.no_grad():
            return float(squared_error(chain.blocks[0].body(split.inputs), split.labels).mean())

    before = error()
    chain.train(0, BATCHES)
    return before, error(), best_error(split.inputs, split.labels)


def test_t08_conditioned_linear_synthetic_gradients_reach_the_least_squares_optimum():
    before, after, best = trained(conditioned=True)
    assert best < 0.5 * before
    assert after < 1.01 * best, (before, after, best)


def test_t08_unconditioned_ones_do_not_for_they_cannot_know_the_target():
    before, after, best = trained(conditioned=False)
    assert after > 2 * best, (before, after, best)
