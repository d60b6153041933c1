"""What forward-forward is made of: goodness and its loss, lengths, labels written into images."""

import pytest
import torch

from actors.nn.goodness import goodness, goodness_loss, length_normalised
from actors.nn.label_pixels import LabelPixels, wrong_labels


def test_length_normalisation_takes_away_all_that_goodness_tells_and_leaves_silence_alone():
    h = torch.rand(4, 3, 2, 2)
    loud = h * torch.tensor([1.0, 2.0, 30.0, 0.0]).view(4, 1, 1, 1)
    assert torch.allclose(length_normalised(loud)[:3], length_normalised(h)[:3])
    assert torch.equal(length_normalised(loud)[3], torch.zeros(3, 2, 2))


def test_goodness_is_the_sum_or_mean_of_squares():
    h = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
    assert goodness(h, "sum").tolist() == [14.0]
    assert goodness(h, "mean").tolist() == [3.5]


@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_the_loss_is_log_two_at_the_threshold_and_falls_as_the_streams_part(kind):
    at = torch.full((1, 16), 0.5)  # mean square 0.25
    unit = 4.0 if kind == "mean" else 0.25  # sqrt(units) / steepness
    assert float(goodness_loss(at, at, kind, 0.25)) == pytest.approx(unit * 0.6931472)
    assert goodness_loss(1.1 * at, at, kind, 0.25) < goodness_loss(at, at, kind, 0.25)
    assert goodness_loss(at, 0.9 * at, kind, 0.25) < goodness_loss(at, at, kind, 0.25)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_labels_are_pixels_of_the_first_channel_on_the_scale_of_the_normalised_image(memory_format):
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=memory_format)
    before = x.clone()
    written = LabelPixels(7, on=2.0, mean=0.5, std=0.25).with_labels(x, torch.tensor([0, 6]))
    off, on = -2.0, 6.0
    assert written[:, 0].flatten(1)[:, :7].tolist() == [[on] + 6 * [off], 6 * [off] + [on]]
    assert torch.equal(written[:, 1:], before[:, 1:])
    assert torch.equal(written[:, 0].flatten(1)[:, 7:], before[:, 0].flatten(1)[:, 7:])
    assert torch.equal(x, before), "what was received stays as it was"


def test_a_wrong_label_is_never_the_true_one_and_every_other_one_comes():
    labels = torch.arange(5).repeat(400)
    wrong = wrong_labels(labels, 5, seed=1)
    assert not (wrong == labels).any()
    for true in range(5):
        counts = wrong[labels == true].bincount(minlength=5)
        assert counts[true] == 0
        assert all(60 < counts[other] < 140 for other in range(5) if other != true), "about 100 each"
