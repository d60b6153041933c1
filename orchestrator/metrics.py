"""Writes what a run observes: `metrics.jsonl` and TensorBoard event files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.summary import accuracy, mean_loss


class Metrics:
    """Appends one line per observation; opened by the orchestrator, closed at the end of the run."""

    def __init__(self, jsonl: Path, tensorboard: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._file = jsonl.open("a", buffering=1)
        self._writer = EventFileWriter(str(tensorboard))
        self._since = time.monotonic()
        self._seen: dict[str, int] = {}
        self.events: list[dict[str, Any]] = []

    def observe(self, position: int, blocks: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the blocks' reports."""
        entry = {
            "kind": "report",
            "time_s": self._time(),
            "batch": position,
            "blocks": [
                {k: b[k] for k in ("name", "version", "updates", "loss", "time_fraction")} for b in blocks.values()
            ],
        }
        self._write(entry)
        for name, block in blocks.items():
            if block["loss"] is not None:
                self._scalar(f"{name}/loss", block["loss"], position)
            for share, fraction in block["time_fraction"].items():
                self._scalar(f"{name}/time_fraction/{share}", fraction, position)
        for name, block in blocks.items():
            self._evaluations(name, block["evaluations"])

    def event(self, **facts: Any) -> None:
        """Record something that happened once."""
        self.events.append({"time_s": self._time(), **facts})
        self._write({"kind": "event", "time_s": self._time(), **facts})

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._writer.close()

    def _evaluations(self, name: str, evaluations: list[Mapping[str, Any]]) -> None:
        for evaluation in evaluations[self._seen.get(name, 0) :]:
            if not evaluation["sums"]:
                continue
            facts = {"accuracy": accuracy(evaluation), "loss": mean_loss(evaluation)}
            self._write(
                {
                    "kind": "evaluation", "time_s": self._time(), "block": name,
                    "split": evaluation["split"], "batch": evaluation["batch_id"],
                    "at_s": round(evaluation["at_s"], 3), **facts,
                }
            )  # fmt: skip
            for fact, value in facts.items():
                if value is not None:
                    self._scalar(f"{name}/{evaluation['split']}_{fact}", value, evaluation["batch_id"])
        self._seen[name] = len(evaluations)

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")

    def _scalar(self, tag: str, value: float, step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        summary = summary_pb2.Summary(  # type: ignore[attr-defined]
            value=[summary_pb2.Summary.Value(tag=tag, simple_value=value)]  # type: ignore[attr-defined]
        )
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)  # type: ignore[attr-defined]
        self._writer.add_event(event)

    def _time(self) -> float:
        return round(time.monotonic() - self._since, 3)
