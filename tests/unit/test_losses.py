"""What the loss of an actor means for the run, with the step marks that processes really leave."""

from dataclasses import replace

import pytest

from actors.block_actor import BlockActor
from actors.errors import RunError
from actors.shard import ShardFile
from actors.step_mark import StepMark, marked_batch, was_computing
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
        self.plan, self.shared = make_plan(config), {}
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
        return self.shared.get(name, [name])

    def replace(self, names, checkpoint, last_batch, first_new):
        self.replaced += names

    def return_all(self, names, checkpoint):
        self.replaced += self.names

    def report(self, version, names=None, lost=0, **facts):
        receives = {"an edge": {"lost": lost}}
        one = {"version": version, "busy_s": 0.0, "computed_s": 0.0, "done": False, "receives": receives, **facts}
        self.recovery.heard(dict.fromkeys(self.names if names is None else names, one))

    def mark(self, name, batch):
        """Let a life of a block begin the step of a batch."""
        mark = StepMark(str(self.directory.step_mark(name)))
        mark.set(batch)
        return mark

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


def test_processes_that_die_while_they_wait_die_of_no_batch(tmp_path):
    """Paused, idle, or behind a slow neighbour: what a block is killed of there is not the batch that it has done."""
    run = Run(tmp_path / "run")
    for _ in range(4):
        mark = run.mark("block1", 7)
        mark.enter("compute")
        mark.enter("wait_input")
        run.lose("block1")
        run.recovery.joined("block1")
    assert run.replaced == ["block1"] * 4
    run.mark("block1", 7)
    run.lose("block1", "ValueError", died=False)
    run.recovery.joined("block1")
    run.mark("block1", 7).enter("evaluate")
    with pytest.raises(RunError, match="raised at batch 7 in 2 lives"):
        run.lose("block1", "ValueError", died=False)


def test_a_block_marks_what_it_computes(tmp_path):
    config = config_of(tmp_path / "run")
    plan, mark = make_plan(config), str(tmp_path / "block1")
    actor = BlockActor(replace(block_spec(config, plan, 1, "run"), step_mark=mark), plan.shapes[1])
    actor.times.start()
    assert not was_computing(mark)
    with actor.times.within("compute"):
        assert was_computing(mark)
    assert not was_computing(mark)


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


# ---------------------------------------------------------------------- what the user reads


def lost_and_back(run, name="block1", after_s=3.4, version=52):
    """An actor was heard 0.3 s before its death was noticed, and is back some seconds later."""
    run.newest = Checkpoint(40)
    run.report(version)
    run.now += 0.3
    run.lose(name)
    run.newest = Checkpoint(44)  # the others go on, and what it repeats is counted from where it began
    run.now += after_s
    run.recovery.joined(name)


def test_one_line_says_everything_about_a_fault(tmp_path):
    run = Run(tmp_path / "run")
    lost_and_back(run)
    assert run.said == [
        "block1 is back after 3.4 s (its process died, noticed within 0.3 s); repeats 11 batches from the checkpoint "
        "at batch 40, 0 messages lost"
    ]
    recovered = run.events[-1]
    assert recovered["event"] == "recovered" and recovered["batches_repeated"] == 11
    assert (recovered["noticed_within_s"], recovered["after_s"], recovered["messages_lost"]) == (0.3, 3.4, 0)
    run.recovery.finish({})
    assert len(run.said) == 1


def test_where_blocks_take_what_comes_the_line_waits_until_it_is_known_what_was_lost(tmp_path):
    run = Run(tmp_path / "run", schedule={"name": "replay"})
    lost_and_back(run)
    assert run.said == []
    run.report(41, names=["block1"])
    run.report(57, names=["block2"], lost=2)
    run.report(41, names=["block1"], lost=3)
    assert run.said == []
    run.report(42, names=["block1"], lost=3)
    assert len(run.said) == 1 and run.said[0].endswith("from the checkpoint at batch 40, 5 messages lost")
    run.lose("block2")
    run.recovery.joined("block2")
    facts = {name: {"receives": {"edge": {"lost": 4}}} for name in ("block1", "block2")}
    run.recovery.finish(facts)
    assert run.said[1].endswith("from the checkpoint at batch 44, 3 messages lost")
    assert run.said[2].startswith("8 messages were lost with processes that died")


def test_where_all_return_the_line_says_so_and_every_actor_tells_what_it_repeats(tmp_path):
    run = Run(tmp_path / "run", recovery={"mode": "global"})
    run.newest = Checkpoint(40)
    run.report(52)
    run.lose("block1")
    for name in run.names:
        run.recovery.joined(name)
    assert run.said == [
        "block1 is back after 0.0 s (its process died, noticed within 0.0 s); all return and repeat 11 batches from "
        "the checkpoint at batch 40, 0 messages lost"
    ]
    repeated = {event["actor"]: event["batches_repeated"] for event in run.events if event["event"] == "recovered"}
    assert repeated == dict.fromkeys(run.names, 11)


def test_actors_of_one_process_share_a_line(tmp_path):
    run = Run(tmp_path / "run")
    run.shared = {name: ["block1", "block2"] for name in ("block1", "block2")}
    run.report(5)
    run.lose("block2")
    for name in ("block1", "block2"):
        run.recovery.joined(name)
    assert len(run.said) == 1
    assert run.said[0].startswith("block1 and block2 are back after 0.0 s")
    assert run.said[0].endswith("repeat 5 batches from the beginning, 0 messages lost")


def test_a_life_that_dies_before_it_runs_is_told_in_the_same_line(tmp_path):
    run = Run(tmp_path / "run")
    run.report(5)
    run.lose("block1")
    run.now += 2.0
    run.lose("block1", "it was not ready")
    run.now += 2.0
    run.recovery.joined("block1")
    assert len(run.said) == 1
    assert "block1 is back after 4.0 s (its process died; then it was not ready" in run.said[0]


def test_a_fault_that_lasts_is_told_of_before_it_is_over(tmp_path):
    run = Run(tmp_path / "run")
    run.report(5)
    run.lose("block1")
    for _ in range(25):
        run.now += 1.0
        run.recovery.replace_due()
    assert run.said == ["block1 is lost (its process died), and no other life of it runs yet"]
    run.recovery.joined("block1")
    assert len(run.said) == 2 and "is back after 25.0 s" in run.said[1]


def test_under_sequential_a_block_repeats_its_own_batches_only(tmp_path):
    """Each of three blocks has 22 batches; block1 has done 11 of its own, and the checkpoint covers 8 of them."""
    run = Run(tmp_path / "run", schedule={"name": "sequential"})
    run.newest = Checkpoint(29)
    run.report(11)
    run.lose("block1")
    run.recovery.joined("block1")
    assert run.events[-1]["batches_repeated"] == 3
