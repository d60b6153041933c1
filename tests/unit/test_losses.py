"""What the loss of an actor means for the run, with the step marks that processes really leave."""

from dataclasses import replace

import pytest

from actors.block_actor import BlockActor
from actors.errors import RunError
from actors.shard import ShardFile
from actors.step_mark import StepMark, marked_batch
from orchestrator.cluster.contract import Ended
from orchestrator.plan import make_plan
from orchestrator.recovery import Recovery
from orchestrator.run_directory import RunDirectory
from orchestrator.specs import block_spec
from orchestrator.step_watch import FIRST_STEP_S
from orchestrator.wiring import SOURCE
from tests.runs import config_of


class Checkpoint:
    def __init__(self, position):
        self.position = position


class Run:
    """Stands for the crew, the commits and the cluster of a run whose clock the test sets."""

    def __init__(self, folder, recovery=None, **sections):
        settings = {"mode": "local", "max_failures": 9, **(recovery or {})}
        config = config_of(folder, **sections, recovery=settings, checkpoint={"every_batches": 4})
        folder.mkdir()
        self.now, self.config, self.directory = 100.0, config, RunDirectory(folder)
        self.blocks = ["block0", "block1", "block2"]
        self.names = [SOURCE, *self.blocks]
        self.newest, self.restarts = None, dict.fromkeys(self.names, 0)
        self.replaced, self.events, self.said = [], [], []
        self.recovery = Recovery(config, self, self, self.event, self.said.append, lambda: self.now)
        self.recovery.steps.begin(self.names)

    @property
    def position(self):
        return -1 if self.newest is None else self.newest.position

    def event(self, **facts):
        self.events.append(facts)

    def forget_uncommitted(self):
        pass

    def together(self, name):
        return [name]

    def replace(self, names, checkpoint, last_batch, first_new):
        self.replaced += names

    def return_all(self, names, checkpoint):
        self.replaced += self.names

    def report(self, version, names=None, **facts):
        one = {"version": version, "busy_s": 0.0, **facts}
        self.recovery.heard(dict.fromkeys(self.names if names is None else names, one))

    def mark(self, name, batch):
        """Let a life of a block begin the step of a batch."""
        StepMark(str(self.directory.step_mark(name))).set(batch)

    def lose(self, name, reason="its process died", **facts):
        self.recovery.lost(Ended(name, reason=reason, **{"died": True, **facts}))
        self.recovery.replace_due()


# ---------------------------------------------------------------------- at which batch


def test_a_process_that_dies_in_the_same_step_in_three_lives_ends_the_run(tmp_path):
    run = Run(tmp_path / "run")
    for _ in range(2):
        run.mark("block1", 7)
        run.lose("block1")
        run.recovery.joined("block1")
    run.mark("block1", 7)
    with pytest.raises(RunError, match="block1 died during the step of batch 7 in 3 consecutive lives"):
        run.lose("block1")


def test_lives_that_die_before_they_have_begun_count_against_no_batch(tmp_path):
    """They leave no mark of their own; that of the life before them is not theirs."""
    run = Run(tmp_path / "run")
    run.mark("block1", 7)
    for _ in range(4):
        run.lose("block1")
    assert [event["batch"] for event in run.events if event["event"] == "lost"] == [7, None, None, None]


def test_shards_that_cannot_be_read_are_not_taken_for_errors_at_the_last_batch(tmp_path):
    run = Run(tmp_path / "run", recovery={"max_failures": 2})
    run.mark("block1", 7)
    run.lose("block1")
    run.lose("block1", "shard batch-3/block1: it is damaged", died=False)
    with pytest.raises(RunError, match=r"more than recovery\.max_failures = 2"):
        run.lose("block1", "shard batch-3/block1: it is damaged", died=False)


def test_a_life_that_cannot_read_its_snapshot_leaves_no_mark_of_a_batch(tmp_path):
    config = config_of(tmp_path / "run")
    plan, mark = make_plan(config), tmp_path / "block1"
    StepMark(str(mark)).set(7)
    spec = replace(
        block_spec(config, plan, 1, "run", str(tmp_path / "checkpoints")),
        restore=ShardFile("batch-000000003/block1.1.safetensors", "0" * 64, 9), step_mark=str(mark),
    )  # fmt: skip
    with pytest.raises(RunError, match="can't be read"):
        BlockActor(spec, plan.shapes[1])
    assert marked_batch(str(mark)) is None


def test_all_marks_are_forgotten_when_all_return_to_a_checkpoint(tmp_path):
    run = Run(tmp_path / "run", recovery={"mode": "global"})
    for name in run.blocks:
        run.mark(name, 7)
    run.lose("block1")
    assert [marked_batch(str(run.directory.step_mark(name))) for name in run.blocks] == [None] * 3


# ---------------------------------------------------------------------- that hang


def test_a_life_that_hangs_before_its_first_report_is_lost(tmp_path):
    run = Run(tmp_path / "run")
    run.lose("block1")
    run.recovery.joined("block1")
    for _ in range(int(FIRST_STEP_S) + 1):
        run.now += 1.0
        run.report(3, names=["source", "block0", "block2"])
    assert [ended.name for ended in run.recovery.hung()] == ["block1"]


def test_what_a_life_that_was_given_up_still_says_means_nothing_for_the_next(tmp_path):
    run = Run(tmp_path / "run", recovery={"backoff_s": 60.0, "step_deadline_s": 5.0})
    run.report(40)
    run.report(41)
    run.lose("block1")
    assert run.replaced == [] and run.recovery.is_given_up("block1")
    run.report(42, busy_s=90.0)
    run.now += 61.0
    run.recovery.replace_due()
    run.recovery.joined("block1")
    run.report(40)
    assert run.replaced == ["block1"]
    assert run.recovery.steps.deadline_s("block1") == FIRST_STEP_S and run.recovery.hung() == []
