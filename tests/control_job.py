"""A run in a thread of its own that a test talks to with `control`."""

import json
import threading
import time

from actors.errors import UserError
from orchestrator.run_directory import RunDirectory
from tests.runs import run

LONG = {"training": {"epochs": 8}, "evaluation": {"every_epochs": 0}, "network": {"blocks": 3}}
DEADLINE_S = 60.0


class Job:
    """A run in a thread of its own, with some computing per step so that there is time to ask."""

    def __init__(self, folder, **sections):
        self.folder, self.summary, self.error = folder, None, None
        self.thread = threading.Thread(target=self._run, args=(sections,))
        self.thread.start()
        self.until(lambda state, batch: state == "running" and batch > 0)

    def _run(self, sections):
        try:
            self.summary = run(self.folder, **{**LONG, **sections})
        except Exception as error:
            self.error = error

    def status(self):
        return RunDirectory.open(self.folder).read_status()

    def until(self, holds):
        """Wait until the status is as asked; an answer that never comes ends at a deadline."""
        over = time.monotonic() + DEADLINE_S
        while True:
            try:
                status = self.status()
            except UserError:
                status = None
            if status and holds(status["state"], status["batch"]):
                return status
            assert self.error is None and time.monotonic() < over, self.error or status
            self.thread.join(0.05)

    def end(self):
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive() and self.error is None, self.error
        return self.summary


def events(folder, kind):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == kind]
