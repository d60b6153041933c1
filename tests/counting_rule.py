"""A rule that counts in its state how often each sample was trained on in each epoch; each sample is a class."""

import torch

from actors.rules.local import Local

SAMPLES = 48
EPOCHS = 4
BATCH_SIZE = 8


class Counting(Local):
    """Local learning; the counts are part of each snapshot, as all of a rule's buffers are."""

    def __init__(self, config, place, around):
        super().__init__(config, place, around)
        self.register_buffer("counts", torch.zeros(EPOCHS, SAMPLES, dtype=torch.int64))

    def now(self, p, credit):
        epoch = p.batch.batch_id * BATCH_SIZE // SAMPLES
        self.counts[epoch].index_add_(0, p.batch.labels, torch.ones_like(p.batch.labels))
        return super().now(p, credit)


class Numbered:
    """Samples whose label is their number."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        if not 0 <= index < SAMPLES:
            raise IndexError(index)
        return torch.full((1, 3, 3), index / SAMPLES), index


def numbered(train):
    """Return the same samples for training and testing."""
    return Numbered()
