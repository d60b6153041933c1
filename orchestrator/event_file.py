"""A TensorBoard event file, written without TensorFlow."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.growing_file import GrowingFile

_NUMBERS = itertools.count()


class EventFile:
    """Scalars and histograms by tag and step."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self.file = GrowingFile(folder / name)
        self._records = RecordWriter(self.file)
        self._add(file_version="brain.Event:2")

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add one number."""
        self._add_value(step, tag=tag, simple_value=value)

    def histogram(self, tag: str, counts: Mapping[int, int], step: int) -> None:
        """Add how often each whole number was counted: a bucket of width 1 around every one from least to most."""
        from tensorboard.compat.proto import summary_pb2

        least, most = min(counts), max(counts)
        values = range(least, most + 1)
        histo = summary_pb2.HistogramProto(  # type: ignore[attr-defined]
            min=least,
            max=most,
            num=sum(counts.values()),
            sum=sum(value * count for value, count in counts.items()),
            sum_squares=sum(value**2 * count for value, count in counts.items()),
            bucket_limit=[value + 0.5 for value in values],
            bucket=[counts.get(value, 0) for value in values],
        )
        self._add_value(step, tag=tag, histo=histo)

    def close(self) -> None:
        """Flush and close the file.

        Raises:
            OSError: the disk refuses what waits.
        """
        self.file.flush()
        self.file.close()

    def _add_value(self, step: int, **value: Any) -> None:
        from tensorboard.compat.proto import summary_pb2

        summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(**value)])  # type: ignore[attr-defined]
        self._add(step=step, summary=summary)

    def _add(self, **facts: Any) -> None:
        """Add a record to the file, which writes it when it is flushed."""
        from tensorboard.compat.proto import event_pb2

        event = event_pb2.Event(wall_time=time.time(), **facts)  # type: ignore[attr-defined]
        self._records.write(event.SerializeToString())
