"""Writes what a run observes: `metrics.jsonl` and TensorBoard event files."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.earlier_jobs import evaluation_key, read_earlier_jobs
from orchestrator.event_file import EventFile
from orchestrator.growing_file import GrowingFile
from orchestrator.notices import Notices
from orchestrator.summary import accuracy, mean_loss
from orchestrator.wiring import SOURCE


class Metrics:
    """Appends one line per observation; opened by the orchestrator, closed at the end of the run.

    Args:
        jsonl: the file of the lines.
        tensorboard: the folder of the event files.
        say: tells the user.
    """

    def __init__(self, jsonl: Path, tensorboard: Path, say: Callable[[str], None]) -> None:
        self.earlier = read_earlier_jobs(jsonl)
        self._file = GrowingFile(jsonl)
        self._events = EventFile(tensorboard)
        self.notices = Notices(self.event, say)
        self._since = time.monotonic()
        self._seen: dict[str, int] = {}
        self._stale: dict[str, Counter[int]] = {}
        self.events = list(self.earlier.events)
        """Of all jobs; `time_s` counts from the start of each."""

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
                self._events.scalar(f"{name}/loss", block["loss"], position)
            for share, fraction in block["time_fraction"].items():
                self._events.scalar(f"{name}/time_fraction/{share}", fraction, position)
        for name, block in blocks.items():
            self._evaluations(name, block["evaluations"])
            for edge, facts in block["receives"].items():
                if not edge.startswith(f"{SOURCE}->"):
                    self._staleness(edge, facts["staleness"], position)
        self._flush()

    def event(self, **facts: Any) -> None:
        """Record something that happened once."""
        self.events.append({"time_s": self._time(), **facts})
        self._write({"kind": "event", "time_s": self._time(), **facts})
        self._flush()

    def close(self) -> None:
        """Flush and close both files."""
        self._flush()
        self._file.close()
        self._events.file.close()

    def _flush(self) -> None:
        for file in (self._file, self._events.file):
            self.notices.attempt(file.path.name, file.flush)

    def _staleness(self, edge: str, counts: Mapping[int, int], position: int) -> None:
        """Write the staleness of what has been trained on since the last report."""
        counted = Counter(counts)
        if new := counted - self._stale.get(edge, Counter()):
            self._events.histogram(f"staleness/{edge}", new, position)
        self._stale[edge] = counted

    def _evaluations(self, name: str, evaluations: list[Mapping[str, Any]]) -> None:
        for evaluation in evaluations[self._seen.get(name, 0) :]:
            if not evaluation["sums"]:
                continue
            facts = {"accuracy": accuracy(evaluation), "loss": mean_loss(evaluation)}
            line = {
                "kind": "evaluation", "time_s": self._time(), "block": name,
                "split": evaluation["split"], "batch": evaluation["batch_id"],
                "at_s": round(evaluation["at_s"], 3), **facts,
            }  # fmt: skip
            if evaluation_key(line) in self.earlier.evaluations:
                continue  # it came with the snapshot that its block goes on from
            self._write(line)
            for fact, value in facts.items():
                if value is not None:
                    self._events.scalar(f"{name}/{evaluation['split']}_{fact}", value, evaluation["batch_id"])
        self._seen[name] = len(evaluations)

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(f"{json.dumps(entry)}\n".encode())

    def _time(self) -> float:
        return round(time.monotonic() - self._since, 3)
