"""Datasets as a block's source sees them: loading, splitting and deterministic, seekable batches. One file
per dataset: any module of this folder that has a `load(spec, train)` is a dataset, selected by its file
name."""

from actors.datasets.batches import Batch, EvalBatches, TrainBatches
from actors.datasets.dataset import Data, DataSpec, Split
from actors.datasets.loading import dataset_names, load_data

__all__ = ["Batch", "Data", "DataSpec", "EvalBatches", "Split", "TrainBatches", "dataset_names", "load_data"]
