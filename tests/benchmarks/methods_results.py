"""The results of the methods benchmark: one JSON line per run, appended as runs end."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.methods_plan import Key, Lines

FOLDER = Path(__file__).parent / "results"


class Results:
    """A file of results; of equal keys the last line holds.

    Args:
        path: of the file, which need not be there yet.
        forget_failed: do as if runs that raised were not there, so that they are repeated.
    """

    def __init__(self, path: Path, *, forget_failed: bool = False) -> None:
        self.path = path
        self._lines: dict[Key, Mapping[str, Any]] = {}
        if path.exists():
            for line in map(json.loads, path.read_text().splitlines()):
                self._keep(line)
        if forget_failed:
            self._lines = {key: line for key, line in self._lines.items() if line["status"] != "failed"}

    @property
    def lines(self) -> Lines:
        """All lines by phase and config hash."""
        return self._lines

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line to the disk before anything else happens; NaN is refused.

        Raises:
            ValueError: the line of a tuning run holds a test accuracy, or a number is not finite.
        """
        if line["phase"] == "tuning" and "test_accuracy" in line:
            raise ValueError(f"{line['method']}: a tuning run may not see test data")
        text = json.dumps(line, allow_nan=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(line)

    def _keep(self, line: Mapping[str, Any]) -> None:
        self._lines[line["phase"], line["config_sha256"]] = line
