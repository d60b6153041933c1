"""A network in which every block draws random numbers."""

from torch import nn

WIDTH = 256


def build(input_shape, num_classes):
    """Four linear layers, and dropout before each but the first."""
    first = [nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], WIDTH)]
    inner = [layer for _ in range(2) for layer in (nn.ReLU(), nn.Dropout(0.3), nn.Linear(WIDTH, WIDTH))]
    return nn.Sequential(*first, *inner, nn.ReLU(), nn.Dropout(0.3), nn.Linear(WIDTH, num_classes))
