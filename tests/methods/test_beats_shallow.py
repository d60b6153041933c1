"""T17 for every method of `configs/methods/`: it beats the same network whose lower blocks stay as they were drawn."""

import pytest

from tests.methods.test_direct_feedback_learning import TASK
from tests.parity.test_methods import METHODS, sections_of
from tests.runs import Replacing, run

EPOCHS = dict.fromkeys(("cdni", "dni", "dni_fully_unlocked"), 24)
"""A synthesizer learns first; the others need no more than the task's."""


def accuracy(folder, method, epochs):
    sections = sections_of(method)
    network = Replacing({**TASK["network"], **sections.pop("network", {})})
    return run(folder, **{**TASK, **sections, "network": network, "training": {"epochs": epochs}}).test_accuracy


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """Accuracies of the baseline by epochs."""
    lengths = {TASK["training"]["epochs"], *EPOCHS.values()}
    return {epochs: accuracy(tmp_path_factory.mktemp("shallow"), "shallow", epochs) for epochs in lengths}


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"shallow"}))
def test_a_method_as_shipped_beats_frozen_lower_blocks(tmp_path, shallow, method):
    epochs = EPOCHS.get(method, TASK["training"]["epochs"])
    assert accuracy(tmp_path, method, epochs) > shallow[epochs] + 0.15
