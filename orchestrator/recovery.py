"""What happens when an actor is lost: the run ends with the reason, or it goes on without losing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from actors.errors import RunError
from actors.step_mark import clear_step_mark, marked_batch, was_computing
from orchestrator.cluster.contract import Ended
from orchestrator.commits import Commits
from orchestrator.config import RunConfig
from orchestrator.config.durability import durability
from orchestrator.crew import Crew
from orchestrator.failures import Failure, Failures
from orchestrator.ledger import num_lost
from orchestrator.loss import Loss
from orchestrator.specs import is_unordered
from orchestrator.step_watch import StepWatch
from orchestrator.wiring import SOURCE

LATE_S = 10.0
"""A fault is told of when it is over, and also before if it lasts longer than this."""


class Recovery:
    """Replaces lost actors, in the mode that the config names.

    Args:
        config: the resolved config.
        crew: replaces.
        commits: knows the newest checkpoint.
        event: records what happened once.
        say: tells the user.
        clock: seconds.
    """

    def __init__(
        self, config: RunConfig, crew: Crew, commits: Commits,
        event: Callable[..., None], say: Callable[[str], None], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.mode = durability(config).mode
        self.crew, self.commits, self.event, self.say, self._clock = crew, commits, event, say, clock
        self.failures = Failures(
            config.recovery.max_failures, config.recovery.backoff_s, config.recovery.max_preemptions
        )
        self.losses: dict[str, Loss] = {}
        self.steps = StepWatch(config.recovery.step_deadline_s, clock)
        self._known: dict[str, Mapping[str, Any]] = {}
        self._settling: dict[str, Loss] = {}
        """Actors that run again, of which it is not known yet what was lost with them."""
        self._num_told = 0
        """Messages that the user knows to be lost."""

    # ------------------------------------------------------------------ hearing of actors

    def heard(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in the reports that have just come."""
        self._known |= {name: facts for name, facts in reports.items() if not self.is_given_up(name)}
        self.steps.heard(reports)
        for name in [name for name in self._settling if name in reports]:
            self._settle(name, reports[name])

    def hung(self) -> list[Ended]:
        """Return the actors whose step or silence lasts past the deadline, as lost ones."""
        return [
            Ended(name, reason=f"it has not answered or finished a step for {lasts_s:.0f} s", died=True)
            for name, lasts_s in self.steps.hung().items()
        ]

    @property
    def who_is_lost(self) -> str | None:
        """Who was lost and does not run again yet, and why; None: all run."""
        lost = [f"{name} is lost ({loss.failure.reason})" for name, loss in self.losses.items() if loss.is_fault]
        return "; ".join(lost) or None

    # ------------------------------------------------------------------ losing and replacing

    def move(self, name: str, reason: str, *, is_announced: bool = True) -> None:
        """Let an actor, which is well, go on elsewhere, with those that share its process.

        Args:
            name: which.
            reason: why, one line.
            is_announced: whether its node will end, which is counted.

        Raises:
            RunError: that has happened too often.
        """
        now, failure = self._clock(), Failure(name, reason, announced=is_announced)
        for moved in self.crew.together(name):
            self.event(event="moved", actor=moved, reason=reason, position=self.commits.position)
        if is_announced and (why := self.failures.add(failure)):
            raise RunError(why)
        self._lose(failure, now)

    def lost(self, ended: Ended, *, announced: bool = False) -> None:
        """Count a loss and plan its replacement, and that of those that share its process.

        Args:
            ended: what is known of it.
            announced: whether its node had said that it would end.

        Raises:
            RunError: the run must end.
        """
        name, now = ended.name, self._clock()
        batch = None if ended.died and not self._was_computing(name) else self._mark(name)
        failure = Failure(
            name, ended.reason, batch, raised=not ended.died, announced=announced, node=ended.node, at_s=now
        )
        together = self.crew.together(name)
        for gone in sorted(together, key=lambda each: each != name):  # it comes first
            reason = ended.reason if gone == name else f"it shared its process with {name}"
            self.event(
                event="lost", actor=gone, reason=reason, batch=self._mark(gone),
                unheard_s=round(self.steps.silent_s(gone), 3),
            )  # fmt: skip
        if self.mode == "none":
            raise RunError(f"{name} ended the run: {ended.reason}\n{ended.traceback}".rstrip())
        if why := self.failures.add(failure):
            raise RunError(f"{why}\n{ended.traceback}".rstrip())
        self._lose(failure, now + self.failures.wait_s(name), is_fault=True)

    def _lose(self, failure: Failure, due_s: float, *, is_fault: bool = False) -> None:
        """Plan to replace an actor, and with it all that share its process."""
        for name in self.crew.together(failure.actor):
            self._settle(name)
            silent_s, mark = self.steps.silent_s(name), self._mark(name)
            loss = Loss(failure, self._clock(), self._version(name), due_s, silent_s, mark, is_fault)
            if (before := self.losses.get(name)) is not None and before.is_fault:
                loss.at_s, loss.silent_s, loss.version = before.at_s, before.silent_s, before.version
                loss.earlier, loss.is_told = [*before.earlier, before.failure.reason], before.is_told
            self.losses[name] = loss
            self._end_life(name)

    def _version(self, name: str) -> int:
        return self._known.get(name, {}).get("version", 0)

    def _end_life(self, name: str) -> None:
        """What is known of a life that has ended means nothing for the next: it may die before it has begun a step."""
        self.steps.forget(name)
        if name != SOURCE:
            clear_step_mark(str(self.crew.directory.step_mark(name)))

    def _mark(self, name: str) -> int | None:
        """The batch that an actor's life trains on, None if it has not begun one."""
        return None if name == SOURCE else marked_batch(str(self.crew.directory.step_mark(name)))

    def _was_computing(self, name: str) -> bool:
        return name != SOURCE and was_computing(str(self.crew.directory.step_mark(name)))

    def is_given_up(self, name: str) -> bool:
        """Whether another life of an actor will begin soon, so that what is heard of this one means nothing."""
        return name in self.losses and not self.losses[name].is_replaced

    def replace_due(self) -> None:
        """Begin to replace what is lost and has waited long enough."""
        self._tell_late()
        due = [name for name, loss in self.losses.items() if not loss.is_replaced and self._clock() >= loss.due_s]
        if not due:
            return
        for name in due:
            self.losses[name].is_replaced, self.losses[name].position = True, self.commits.position
        if self.mode == "global":
            self._return_all(due)
            return
        last_batch, first_new = self._sent_before() if SOURCE in due else (None, 0)
        self.crew.replace(due, self.commits.newest, last_batch, first_new)

    def joined(self, name: str) -> None:
        """Tell that an actor runs again."""
        self.steps.begin([name])
        loss = self.losses.pop(name, None)
        if loss is None:
            return
        loss.back_s = self._clock()
        self._settling[name] = loss
        if not is_unordered(self.crew.config):  # nothing is lost
            self._settle(name)

    def _settle(self, name: str, facts: Mapping[str, Any] | None = None) -> None:
        """Tell of a loss that is over, once what was lost is known: when the next life has got through a step.

        Args:
            name: of the actor.
            facts: its newest report; None: nothing more will be known.
        """
        loss = self._settling.get(name)
        if loss is None:
            return
        if facts is not None and not facts["done"]:
            if loss.back_version is None:
                loss.back_version = facts["version"]
            if facts["version"] == loss.back_version:
                return
        del self._settling[name]
        is_told, lost = loss.failure.actor == name, 0
        if is_told:
            lost = max(0, num_lost(self._known) - self._num_told)
            self._num_told += lost
        repeated = self._num_repeated(name, loss)
        self.event(
            event="recovered", actor=name, after_s=round(loss.after_s, 3), batches_repeated=repeated,
            restarts=self.crew.restarts[name], noticed_within_s=round(loss.silent_s, 3), messages_lost=lost,
        )  # fmt: skip
        if is_told:
            self.say(loss.line(self.crew.together(name), repeated, lost, all_return=self.mode == "global"))

    def _num_repeated(self, name: str, loss: Loss) -> int:
        """The batches that a life does again: those after the checkpoint that the one before had finished."""
        phase, begins = self.crew.plan.phase_batches, 0
        if phase is not None and name != SOURCE:
            begins = self.crew.blocks.index(name) * phase
        return max(0, min(loss.version, begins + loss.version - loss.position - 1))

    def finish(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Tell what is left to tell, when every actor has ended with these facts."""
        self._known |= facts
        for name in list(self._settling):
            self._settle(name)
        if total := num_lost(facts):
            self.say(f"{total} messages were lost with processes that died; the run's edges in summary.json say where")

    def _tell_late(self) -> None:
        """Tell of faults that last; the line of one that is over soon says everything."""
        for name, loss in self.losses.items():
            if loss.is_fault and not loss.is_told and self._clock() - loss.at_s > LATE_S:
                loss.is_told = True
                if loss.failure.actor == name:
                    self.say(f"{name} is lost ({loss.failure.reason}), and no other life of it runs yet")

    def _return_all(self, due: list[str]) -> None:
        self.commits.forget_uncommitted()
        self.crew.return_all(due, self.commits.newest)
        for name in self.crew.names:
            if name not in self.losses:
                self._settle(name)
                loss = Loss(Failure("", "all return"), self._clock(), self._version(name), 0.0, is_replaced=True)
                loss.position, self.losses[name] = self.commits.position, loss
            self._end_life(name)

    def _sent_before(self) -> tuple[int | None, int]:
        """What the source's life before has sent as the last batch, if it has, and the first it can't have sent.

        Blocks that live may go on until they have used up what it sent: as much as waits on an edge, at most.
        """
        facts = {**self._known, **self.crew.cluster.reports()}
        blocks = [facts[name] for name in self.crew.blocks if name in facts]
        last = next((block["last_batch"] for block in blocks if block["last_batch"] is not None), None)
        if self.losses.keys() >= set(self.crew.blocks) or is_unordered(self.crew.config):
            return last, 0
        versions = [block["version"] for block in blocks]
        begun = sum(versions) if self.crew.plan.phase_batches is not None else max(versions, default=0)
        marks = [self._mark(name) for name in self.crew.blocks] + [loss.batch for loss in self.losses.values()]
        begun = max(begun, *(1 + (mark or 0) for mark in marks))
        most_waiting = max((edge["capacity"] for one in facts.values() for edge in one["sends"].values()), default=0)
        return last, begun + most_waiting + 1
