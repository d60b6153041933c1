"""A rule, and data, that bring numbers that are not finite into a run."""

import torch

from actors.rules.local import Local


class Spoiling(Local):
    """The second block's credit is not a number at batch 7."""

    def now(self, p, credit):
        if p.batch.batch_id == 7 and self.place.index == 1:
            credit = credit * float("nan")
        return super().now(p, credit)


class Spoilt:
    """176 images; number 5 is not a number."""

    def __init__(self, spoils):
        self.inputs = torch.randn(176, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        if spoils:
            self.inputs[5] = float("nan")

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], index % 4


def spoilt(train):
    """Return training data with one bad sample, test data without."""
    return Spoilt(train)
