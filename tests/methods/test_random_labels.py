"""T27: labels drawn at random can only be learned by heart, which the last loss does far better than local ones."""

from functools import cache

import torch
from torch.utils.data import TensorDataset

from tests.contract.plugin_chain import Chain, chain_config

NUM_SAMPLES, NUM_CLASSES, BATCH_SIZE, EPOCHS = 256, 4, 32, 50
HERE = "tests.methods.test_random_labels"


@cache
def samples():
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(NUM_SAMPLES, 1, 6, 6, generator=generator)
    return inputs, torch.randint(NUM_CLASSES, (NUM_SAMPLES,), generator=generator)


def random_labels(train):
    return TensorDataset(*samples())


def train_accuracy(rule):
    """Return the part of the training set that a narrow network of convolutions gets right after all epochs.

    Local heads see averages of feature maps; with linear layers on all units of an MLP they learn by heart, too.
    """
    data = {"factory": f"{HERE}:random_labels", "classes": NUM_CLASSES, "batch_size": BATCH_SIZE}
    network = {"name": "cnn", "channels": [12, 12, 12], "pool_after": [], "blocks": 4}
    chain = Chain(chain_config(data=data, network=network, rule={"name": rule}, training={"epochs": EPOCHS}))
    chain.train(0, EPOCHS * NUM_SAMPLES // BATCH_SIZE)
    h, labels = samples()
    with torch.no_grad():
        for block in chain.blocks:
            block.train(False)
            h = block.body(h)
    return float((h.argmax(dim=1) == labels).double().mean())


def test_backprop_learns_random_labels_by_heart_and_local_losses_do_not():
    exact, local = train_accuracy("backprop"), train_accuracy("local")
    assert exact > 0.95
    assert local < 0.75, "chance is 0.25"
