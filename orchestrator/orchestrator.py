"""The orchestrator: starts a run's actors, watches them, and ends the run.

    setup    cluster.start -> assign (specs from the plan) -> connect (edges from the wiring) -> launch
    drive    wait on the actors' runs; at most once a second read their reports -> status, metrics, progress
    finish   commit the last snapshot, check every edge's ledger, write summary.json

It handles small facts only; tensors go from block to block. The parts it drives never refer back to it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from actors.errors import UserError
from actors.fail_points import FailPoints
from actors.storage import open_storage
from orchestrator import control
from orchestrator.auto_buffers import AutoBuffers
from orchestrator.checkpoints import Checkpoints
from orchestrator.cluster.contract import Cluster, Ended, Joined
from orchestrator.commits import Commits
from orchestrator.config import RunConfig
from orchestrator.config.durability import durability
from orchestrator.crew import Crew
from orchestrator.departures import Departures
from orchestrator.lease import Lease
from orchestrator.ledger_watch import LedgerWatch
from orchestrator.live_settings import LiveSettings
from orchestrator.measures import Measures
from orchestrator.metrics import Metrics
from orchestrator.plan import Plan
from orchestrator.progress import TrainingProgress
from orchestrator.recovery import Recovery
from orchestrator.retention import retention_warning
from orchestrator.run_directory import RunDirectory
from orchestrator.signals import stop_on_signal
from orchestrator.specs import is_retaining, is_unordered, kills_of
from orchestrator.status import status_of
from orchestrator.store_room import fitted
from orchestrator.summary import (
    Summary,
    accuracy,
    block_entry,
    bottleneck,
    edge_entry,
    ensemble_accuracy,
    last_evaluation,
    mean_loss,
    weights_sha256,
)  # fmt: skip
from orchestrator.timeline import Clocks, timeline
from orchestrator.wiring import SOURCE, Edge, is_forward

REPORT_EVERY_S = 1.0
HURRY_S = 0.1
"""Between two looks while the source waits for a checkpoint."""


class Orchestrator:
    """Drives one run from start to summary.

    Args:
        config: the resolved config.
        plan: what the run is made of.
        directory: where it is written.
        cluster: where the actors run; closed by the caller.
        lease: the right to run it; released by the caller.
        progress: whether to show progress.
    """

    def __init__(
        self, config: RunConfig, plan: Plan, directory: RunDirectory, cluster: Cluster, lease: Lease, *, progress: bool
    ) -> None:
        self.config, self.plan, self.directory, self.cluster, self.lease = config, plan, directory, cluster, lease
        storage = open_storage(directory.checkpoint_address(config.checkpoint.uri))
        self.crew = Crew(config, plan, directory, cluster, storage, lease.epoch)
        self.names = self.crew.blocks
        self.num_batches = plan.num_batches
        self.progress = TrainingProgress(self.num_batches, plan.batches_per_epoch, plan.phase_batches, progress)
        self.metrics = Metrics(directory.metrics_jsonl, directory.tensorboard, self.progress.say)
        self.notices = self.metrics.notices
        self.settings = LiveSettings(config, self.crew, self.notices)
        points = FailPoints(kills_of(config, "orchestrator"), is_shared=config.placement.backend == "in_process")
        checkpoints = Checkpoints(storage, directory.run_id, points, plan.blocks, lease.beat)
        found = checkpoints.resume_point(is_finished=directory.is_finished)
        self.start_from, self.goes_on, self.notes = found.checkpoint, found.goes_on, found.notes
        self.commits = Commits(
            checkpoints, config.checkpoint.keep, durability(config).every_s, time.monotonic, self.start_from,
            in_background=config.placement.backend != "in_process",
        )  # fmt: skip
        self.recovery = Recovery(config, self.crew, self.commits, self.metrics.event, self.progress.say, time.monotonic)
        self.departures = Departures(
            self.recovery, self.commits, lambda: cluster.order(SOURCE, "snapshot"), self.metrics.event,
            self.progress.say, time.monotonic,
        )  # fmt: skip
        self.facts: dict[str, Mapping[str, Any]] = {}
        self.known: dict[str, Mapping[str, Any]] = {}
        """The newest report of every actor."""
        self.ended: dict[str, Mapping[str, Any]] = {}
        """The last report of lives that are over: all that is known of an actor until its next life reports."""
        self.clocks = Clocks()
        self.measures = Measures(directory.path.name, config.data.batch_size)
        self.auto_buffers, self.ledgers = AutoBuffers(plan.wiring), LedgerWatch(plan.wiring.edges)
        self.stop_asked = False
        self.is_paused = False
        self.has_launched = False
        self._logged: dict[str, int] = {}

    def run(self) -> Summary:
        """Train to the end, or to the batch after a stop was asked for.

        Raises:
            UserError: an actor refused its settings.
            RunError: an actor failed; the reason is its own.
        """
        try:
            control.refuse_left_over(self.directory)
            self._write_status("starting", {})
            self._setup()
            with stop_on_signal(self._stop_or_end):
                self._drive()
            return self._finish()
        except BaseException as error:
            if self.lease.is_held:  # else status.json is another orchestrator's
                reason = str(error) or type(error).__name__
                self._write_status("failed", {}, reason=reason.splitlines()[0])
            raise
        finally:
            self.progress.close()
            self.metrics.close()

    def _setup(self) -> None:
        self.progress.say(f"starting {len(self.crew.names)} actors")
        if self.start_from is not None:
            self.metrics.event(event="resumed", position=self.start_from.position)
            self.progress.say(f"going on from the checkpoint at batch {self.start_from.position}")
        for note in self.notes:
            self.notices.show("checkpoint not used", note, note)
        self.config, warning = fitted(self.config, self.plan, self.cluster.store_bytes())
        self.crew.config = self.config
        if warning is not None:
            self.notices.show("object store", warning)
        if is_retaining(self.config) and (warning := retention_warning(self.config, self.plan)):
            self.notices.show("small retention", warning)
        self.crew.start(self.start_from, goes_on=self.goes_on)
        self.progress.say(self.plan.what(self.config.training.epochs))

    def _drive(self) -> None:
        launched = time.monotonic()
        self.cluster.launch()
        self.has_launched = True
        self.recovery.steps.begin(self.crew.names)
        reported = 0.0
        while len(self.facts) < len(self.crew.names) or self.recovery.losses:
            is_hurrying = self.commits.is_awaited
            for event in self.cluster.poll(HURRY_S if is_hurrying else control.LOOK_EVERY_S):
                self._accept(event)
            for request in control.waiting(self.directory):
                self._control(request)
            self.recovery.replace_due()
            if self.cluster.has_news or time.monotonic() - reported >= REPORT_EVERY_S:
                self._observe(self._reports())
                reported = time.monotonic()
            elif is_hurrying:
                self.known |= self._reports()
                self._cover()
            elif self.commits.has_news:
                self._cover()
        self.wall_s = time.monotonic() - launched
        self._observe(self.facts, at_end=True)

    def _control(self, request: control.Request) -> None:
        """Validate what `unlocked control` asks for, queue it with the actors, and answer."""
        try:
            if request.action is not None:
                self._act(request.action)
                control.accept(request, request.action)
                return
            self.config = self.settings.change(request)
        except UserError as error:
            control.refuse(request, str(error))
            return
        self.metrics.event(event="control", values=dict(request.values))
        control.accept(request, ", ".join(f"{key}={value}" for key, value in request.values.items()))

    def _act(self, action: str) -> None:
        if action in ("pause", "resume"):
            self._pause(action)
        elif action == "stop":
            self._stop()
        else:
            self.cluster.order(SOURCE, action)
        self.metrics.event(event="control", action=action)

    def _pause(self, action: str) -> None:
        self.is_paused = action == "pause"
        self.recovery.steps.restart()
        for name in self.crew.names:
            self.cluster.order(name, action)

    def _stop(self) -> None:
        """Make the next batch the last one; what is under way is trained on, also where the run was paused."""
        self.stop_asked = True
        self.cluster.order(SOURCE, "stop")
        if self.is_paused:
            self._pause("resume")

    def _stop_or_end(self) -> None:
        """Stop; asked again, end at once."""
        if self.stop_asked:
            raise KeyboardInterrupt
        self.progress.say("stopping after the next batch; once more to stop at once")
        self._stop()

    def _reports(self) -> Mapping[str, Mapping[str, Any]]:
        asked = self.clocks.now()
        reports = self.cluster.reports()
        self.clocks.note(asked, self.clocks.now(), reports)
        if not self.is_paused:
            self.recovery.heard(reports)
            for ended in self.recovery.hung():
                self._accept(ended)
        well = {name: facts for name, facts in reports.items() if name not in self.recovery.losses}
        self.departures.look(self.cluster.leaving(), well)
        if self.config.placement.rebalance and self.recovery.mode != "none" and not self.stop_asked:
            self.departures.settle(well, self.cluster.astray)
        return reports

    def _accept(self, event: Ended | Joined) -> None:
        name = event.name
        if self.recovery.is_given_up(name):
            return
        if isinstance(event, Joined):
            self.recovery.joined(name)
            self.commits.ask_again()
            self._instruct(name)
            return
        if event.facts is not None:
            self.facts[name] = event.facts
            return
        if event.is_mistake:
            self.metrics.event(event="failed", actor=name, reason=event.reason)
            raise UserError(event.reason)
        self.recovery.lost(event, announced=event.died and self.departures.is_announced(name))
        for gone in self.crew.names if self.recovery.mode == "global" else self.crew.together(name):
            self.facts.pop(gone, None)
            self.ended |= {gone: self.known.pop(gone)} if gone in self.known else {}
            self._logged.pop(gone, None)

    def _instruct(self, name: str) -> None:
        """Tell another life of an actor what the one before had been told, or what was said while it was built."""
        self.settings.repeat(name)
        if is_unordered(self.config):
            self.cluster.order(SOURCE, "repeat")  # blocks that lost batches need as many more
        if name == SOURCE and self.stop_asked:
            self.cluster.order(SOURCE, "stop")
        self.cluster.order(name, "commit", {"position": self.commits.position})
        if self.is_paused:
            self.cluster.order(name, "pause")

    def _observe(self, reports: Mapping[str, Mapping[str, Any]], *, at_end: bool = False) -> None:
        self.notices.attempt("lease.json", self.lease.beat)
        self.known |= reports
        shown = self.ended | self.known
        blocks = {name: shown[name] for name in self.names if name in shown}
        if len(blocks) < len(self.names):
            return
        position, tested = self._position(blocks)
        self.metrics.observe(position, blocks)
        self.cluster.publish(self.measures.of(shown, self.crew.restarts))
        if reports.keys() >= set(self.crew.names):  # taken in one look
            self._log_changes(reports)
            self._log_imbalances(self.ledgers.look(reports))
            self._size_buffers(reports)
        self._cover(at_end=at_end)
        self._write_status("paused" if self.is_paused else "running", shown, reason=self.recovery.who_is_lost)
        self.progress.show(position, tested, blocks)

    def _cover(self, *, at_end: bool = False) -> None:
        """Commit what the actors have written, let them forget what that covers, and order the next snapshot."""
        if self.recovery.losses or not self.known.keys() >= set(self.names):
            return
        source, blocks = self.known.get(SOURCE), [self.known[name] for name in self.names]
        for checkpoint in self.commits.note(source, blocks, at_end=at_end):
            self.metrics.event(event="checkpoint", position=checkpoint.position)
            for name in self.crew.names:
                self.cluster.order(name, "commit", {"position": checkpoint.position})
        if self.commits.is_due():
            self.cluster.order(SOURCE, "snapshot")
        if self.commits.error is not None:
            self.notices.show("checkpoint failed", f"{self.commits.error}; training goes on")
        else:
            self.notices.over("checkpoint failed", f"checkpoint at batch {self.commits.position} was written")
        if self.commits.left_over is not None:
            self.notices.show("left over", self.commits.left_over)
        if source is not None and source["waits_for_checkpoint"]:
            self.notices.show(
                "retention",
                "the source waits for checkpoints, since more than recovery.retention_bytes would be kept; raise it "
                "or take checkpoints more often",
            )

    def _position(self, reports: Mapping[str, Mapping[str, Any]]) -> tuple[int, float | None]:
        """Batches that the chain is through, and its newest test accuracy; in phases, of the last block that has one"""
        blocks = [reports[name] for name in self.names if name in reports]
        if not blocks:
            return 0, None
        found = [accuracy(last_evaluation(block, "test")) for block in blocks]
        known = found if self.plan.phase_batches is None else [None, *(value for value in found if value is not None)]
        return self.plan.position([block["version"] for block in blocks]), known[-1]

    def _size_buffers(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        for producer, values in self.auto_buffers.orders(self.config.buffers, reports).items():
            if producer not in self.facts:
                self.cluster.order(producer, "set", values)

    def _log_changes(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Record where a change of settings has applied."""
        for name, facts in reports.items():
            for change in facts["applied"][self._logged.get(name, 0) :]:
                self.metrics.event(event="applied", actor=name, **change)
            self._logged[name] = len(facts["applied"])

    def _finish(self) -> Summary:
        blocks = [self.facts[name] for name in self.names]
        self._log_imbalances(self.ledgers.close(self.facts))
        self.recovery.finish(self.facts)
        self.commits.check_last()
        summary = self._summarise(blocks)
        spans = timeline(self.facts, self.clocks)
        self.notices.attempt("timeline.json", lambda: self.directory.write_timeline(spans))
        self.directory.write_summary(summary.as_dict())
        self._write_status(summary.status, self.facts)
        return summary

    def _summarise(self, blocks: list[Mapping[str, Any]]) -> Summary:
        last = blocks[-1]
        digests = {name: digest for facts in blocks for name, digest in facts["digests"].items()}
        restarts = self.crew.restarts + self.metrics.earlier.restarts
        entries = [block_entry(facts, restarts[facts["name"]]) for facts in blocks]
        trained = self.facts[SOURCE]["version"]
        epochs = trained // self.plan.batches_per_epoch
        before = 0 if self.start_from is None else self.start_from.position + 1
        tested = last_evaluation(last, "test")
        return Summary(
            method=str(self.config.rule.name or self.config.rule.factory),
            status="stopped" if self._was_stopped(trained) else "completed",
            test_accuracy=accuracy(tested),
            test_loss=mean_loss(tested),
            validation_accuracy=accuracy(last_evaluation(last, "validation")),
            ensemble_accuracy=ensemble_accuracy(tested),
            samples_per_s=self._samples_per_block(before, trained) / self.wall_s,
            wall_s=self.wall_s,
            epochs=epochs,
            seed=self.config.seed,
            weights_sha256=weights_sha256(digests),
            bottleneck=bottleneck(entries),
            run_dir=str(self.directory.path),
            blocks=entries,
            edges=[
                edge_entry(edge.name, self.facts[edge.producer], self.facts[edge.consumer], self._bound(edge))
                for edge in self.plan.wiring.edges
            ],
            events=self.metrics.events,
        )

    def _was_stopped(self, trained: int) -> bool:
        """Whether batches are left; blocks that take what comes may need fewer than the source has."""
        return trained < self.num_batches and (self.stop_asked or not is_unordered(self.config))

    def _samples_per_block(self, first: int, end: int) -> float:
        """Return how many samples of batches first..end-1 a block has trained on, the mean of all blocks."""
        turns = 1 if self.plan.phase_batches is None else len(self.names)
        return (self._num_samples(end) - self._num_samples(first)) / turns

    def _num_samples(self, num_batches: int) -> int:
        """Return the samples in the first batches of the run."""
        epochs, rest = divmod(num_batches, self.plan.batches_per_epoch)
        return epochs * self.plan.num_samples + rest * self.config.data.batch_size

    def _bound(self, edge: Edge) -> int | None:
        """The loosest staleness bound that held on an edge: activations between blocks have one, if any."""
        return self.facts[edge.consumer]["receives"][edge.name]["bound"] if is_forward(edge) else None

    def _log_imbalances(self, found: Sequence[Mapping[str, Any]]) -> None:
        """Report edges whose messages don't add up."""
        for wrong in found:
            self.metrics.event(event="imbalance", **wrong)
            self.progress.say(wrong["reason"])

    def _write_status(self, state: str, reports: Mapping[str, Mapping[str, Any]], reason: str | None = None) -> None:
        batch, tested = self._position(reports)
        epoch = batch // self.plan.batches_per_epoch
        status = status_of(
            state, reports, self.names,
            epoch=epoch, batch=batch, num_batches=self.num_batches, test_accuracy=tested, reason=reason,
        )  # fmt: skip
        self.notices.attempt("status.json", lambda: self.directory.write_status(status))
