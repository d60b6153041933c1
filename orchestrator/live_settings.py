"""The settings that `unlocked control` changes while a job runs: what is in force, and who is told."""

from __future__ import annotations

from orchestrator import control
from orchestrator.catalog import find_catalog
from orchestrator.config import RunConfig, changed
from orchestrator.crew import Crew
from orchestrator.kept_changes import keep_changes
from orchestrator.notices import Notices


class LiveSettings:
    """Validates changes, writes them down, and tells the actors, also those that begin later.

    Args:
        config: as the job's command gave it; what the crew has may be fitted to the machine.
        crew: its actors.
        notices: told if the changes can't be written down.
    """

    def __init__(self, config: RunConfig, crew: Crew, notices: Notices) -> None:
        self._asked, self._crew, self._notices = config, crew, notices
        self._has_changed = False

    def change(self, request: control.Request) -> RunConfig:
        """Return the job's config after a request, which every actor has been told.

        Raises:
            UserError: the request is refused; nothing was changed.
        """
        catalog, before = find_catalog(), self._asked
        config = control.check(self._crew.config, request, catalog)
        asked = self._asked = changed(before, request.values, catalog)
        self._crew.config, self._has_changed = config, True
        for name in self._crew.names:
            self.repeat(name)
        directory = self._crew.directory
        self._notices.attempt("config.yaml", lambda: keep_changes(directory, before, asked, request.values))
        return config

    def repeat(self, name: str) -> None:
        """Tell an actor what was changed, if anything was: its life may have been begun with what was before."""
        if self._has_changed:
            self._crew.cluster.order(name, "set", control.for_actors(self._crew.config))
