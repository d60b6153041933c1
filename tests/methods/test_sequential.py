"""Greedy layerwise learning: one block after another, frozen afterwards (T20, T28), with its votes and its orders."""

import copy
import io
import json
import signal

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

from actors.block import Block
from actors.datasets.batches import EvalBatches
from actors.datasets.loading import load_data
from actors.errors import UserError
from actors.evaluation import VOTES, Evaluator, Parts
from actors.learning_rule import Around
from actors.messages import Flags, Kind, Message
from actors.needs import Place
from actors.nn.auxiliary_head import HeadConfig, auxiliary_head
from actors.objectives.cross_entropy import CrossEntropy
from actors.rules.local import Local
from actors.storage import open_storage
from orchestrator import api
from orchestrator.catalog import find_catalog
from orchestrator.checkpoints import newest_checkpoint
from orchestrator.cluster.in_process import InProcessCluster
from orchestrator.config import load_runs
from orchestrator.plan import make_plan
from orchestrator.progress import TrainingProgress
from orchestrator.specs import block_spec, data_spec
from tests.conftest import ROOT
from tests.methods.recorded_chain import CNN, RecordedChain, cnn_config
from tests.runs import config_of, run

BLOCKS, PHASE = 4, 8
SEQUENTIAL = {"name": "sequential"}
HEAD = {"name": "cross_entropy", "head": {"kind": "cnn", "depth": 1}}


def chain_of(**sections):
    settings = {"training": {"epochs": 1}, "objective": HEAD, **sections}
    return RecordedChain(cnn_config(rule={"name": "local"}, schedule=SEQUENTIAL, **settings))


class Watched:
    """What each block trained on, its digests when each phase began, and its mode while passing on."""

    def __init__(self, chain, num_batches=None):
        self.uses, self.digests, self.modes = [], {}, []
        for j, block in enumerate(chain.blocks):

            def forward(message, raw=None, *, j=j, forward=block.forward):
                self.uses.append((j, message.batch_id))
                if message.batch_id % PHASE == 0:
                    self.digests[j] = [b.digests() for b in chain.blocks]
                return forward(message, raw)

            def forward_frozen(message, *, j=j, block=block, forward_frozen=block.forward_frozen):
                self.modes.append((j, [m.training for part in block.evaluator.parts.all() for m in part.modules()]))
                return forward_frozen(message)

            block.forward, block.forward_frozen = forward, forward_frozen
        chain.train(0, chain.plan.num_batches if num_batches is None else num_batches)
        self.digests[len(chain.blocks)] = [b.digests() for b in chain.blocks]


# ---------------------------------------------------------------- one after another


def test_the_config_is_the_papers():
    path = ROOT / "configs" / "methods" / "greedy_layerwise.yaml"
    (config,) = load_runs([ROOT / "configs" / "digits_cnn.yaml", path], [], find_catalog())
    assert (config.rule.name, config.schedule.name) == ("local", "sequential")
    assert config.objective.options["head"] == {"kind": "cnn", "depth": 1}


def test_blocks_train_one_after_another_each_on_its_own_phase():
    chain = chain_of()
    uses = Watched(chain).uses
    assert uses == [(j, batch_id) for j in range(BLOCKS) for batch_id in range(j * PHASE, (j + 1) * PHASE)]
    assert [(block.version, block.updates) for block in chain.blocks] == [(PHASE, PHASE)] * BLOCKS


def test_a_frozen_block_never_changes_again_running_statistics_included():
    """T20."""
    digests = Watched(chain_of()).digests
    for j in range(BLOCKS):
        assert digests[j][j] != digests[j + 1][j], "block j learns in its own phase"
        for later in range(j + 1, BLOCKS + 1):
            assert digests[later][j] == digests[j + 1][j]
        for earlier in range(j + 1):
            assert digests[earlier][j] == digests[0][j], "and not before it"
    assert any("running_mean" in name for name in digests[0][0])


def test_a_frozen_block_passes_on_in_evaluation_mode():
    watched = Watched(chain_of())
    assert {j for j, _ in watched.modes} == {0, 1, 2}
    assert not any(any(modes) for _, modes in watched.modes)
    assert len(watched.modes) == PHASE * (3 + 2 + 1)


def test_it_equals_greedy_training_by_hand_bit_for_bit():
    chain = chain_of()
    bodies = [copy.deepcopy(block.body) for block in chain.blocks]
    heads = [copy.deepcopy(block.objective) for block in chain.blocks]
    batches = [chain.batches.batch(b) for b in range(BLOCKS * PHASE)]
    for j in range(BLOCKS):
        trained = [*bodies[j].parameters(), *heads[j].parameters()]
        optimizer = torch.optim.SGD(trained, lr=chain.config.optimizer.lr, momentum=0.9)
        for batch in batches[j * PHASE : (j + 1) * PHASE]:
            h = batch.inputs
            with torch.no_grad():
                for below in bodies[:j]:
                    h = below.eval()(h)
            cross_entropy(heads[j].head(bodies[j](h, batch.batch_id)), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    chain.train(0, BLOCKS * PHASE)
    for block, body, head in zip(chain.blocks, bodies, heads, strict=True):
        for name, tensor in block.body.named_state().items():
            assert torch.equal(tensor, body.named_state()[name]), name
        for name, tensor in block.objective.state_dict().items():
            assert torch.equal(tensor, head.state_dict()[name]), name


@pytest.mark.parametrize(("accumulate", "updates"), [(3, 3), (5, 2), (8, 1), (20, 1)])
def test_a_phase_ends_with_an_update_of_whatever_it_has_accumulated(accumulate, updates):
    chain = chain_of(training={"epochs": 1, "accumulate": accumulate})
    chain.train(0, BLOCKS * PHASE)
    assert [(block.updates, block.head_updates) for block in chain.blocks] == [(updates, updates)] * BLOCKS
    assert all(p.grad is None for block in chain.blocks for _, p in block.named_parameters())


def test_every_phase_has_the_whole_rate_schedule():
    config = cnn_config(
        schedule=SEQUENTIAL,
        training={"epochs": 2},
        optimizer={"name": "sgd", "lr": 0.1, "schedule": {"name": "cosine"}},
    )
    spec = block_spec(config, make_plan(config), 2, "run", None)
    assert spec.phase_batches == 16 and spec.optimizers["body"].schedule.total == 16


# ---------------------------------------------------------------- T28


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_auxiliary_problem_of_depth_k_has_k_minus_one_convolutions_before_it_pools(k):
    head = auxiliary_head(HeadConfig(kind="cnn", depth=k - 1), (6, 6, 6), 4)
    assert sum(isinstance(module, nn.Conv2d) for module in head.modules()) == k - 1
    (pool,) = [module for module in head.modules() if isinstance(module, nn.AdaptiveAvgPool2d)]
    assert pool.output_size == 2
    assert sum(isinstance(module, nn.Linear) for module in head.modules()) == 1
    chain = chain_of(objective={"name": "cross_entropy", "head": {"kind": "cnn", "depth": k - 1}})
    convolutions = [
        sum(isinstance(module, nn.Conv2d) for module in block.objective.modules()) for block in chain.blocks
    ]
    assert convolutions == [k - 1] * 3 + [0]


# ---------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def greedy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("greedy") / "run"
    sections = {
        "schedule": SEQUENTIAL, "objective": HEAD, "training": {"epochs": 2}, "data": {"validation": 0.1},
        "evaluation": {"every_epochs": 1},
    }  # fmt: skip
    return folder, run(folder, **sections), config_of(folder, **sections)


def test_epochs_count_for_each_block_and_the_summary_counts_all(greedy):
    _, summary, config = greedy
    batches = make_plan(config).batches_per_epoch
    assert summary.status == "completed" and summary.epochs == 6
    assert summary.samples_per_s * summary.wall_s == pytest.approx(2 * make_plan(config).num_samples)
    assert [(block["version"], block["updates"]) for block in summary.blocks] == [(2 * batches, 2 * batches)] * 3


def test_an_evaluation_reaches_the_trained_blocks_only(greedy):
    folder, _, config = greedy
    batches = make_plan(config).batches_per_epoch
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    positions = [(i + 1) * batches - 1 for i in range(6)]
    for j in range(3):
        for split in ("test", "validation"):
            found = [
                line["batch"]
                for line in lines
                if line["kind"] == "evaluation" and line["block"] == f"block{j}" and line["split"] == split
            ]
            assert found == positions[2 * j :]


def test_every_ledger_balances(greedy):
    for edge in greedy[1].edges:
        assert edge["sent"] == edge["trained"] and edge["in_flight"] == edge["buffered"] == edge["lost"] == 0


def test_the_network_of_the_last_snapshot_evaluates_as_the_run_did(greedy):
    folder, summary, _ = greedy
    result = api.evaluate(folder)
    assert result["test"]["accuracy"] == summary.test_accuracy == summary.blocks[-1]["test_accuracy"]
    assert result["validation"]["accuracy"] == summary.validation_accuracy


def test_the_ensemble_of_heads_is_reported_beside_the_single_head(greedy):
    """Block j's class probabilities weigh 2^j; computed here from the run's own checkpoint."""
    folder, summary, config = greedy
    plan, checkpoint = make_plan(config), newest_checkpoint(open_storage(str(folder / "checkpoints")))[0]
    blocks = [Block(block_spec(config, plan, j, "run", None), plan.shapes[j]) for j in range(3)]
    for j, block in enumerate(blocks):
        block.restore(checkpoint.read(j))
        block.train(False)
    correct = {how: [0, 0, 0] for how in ("weighted", "single")}
    batches = list(EvalBatches(load_data(data_spec(config)).test, 64))
    with torch.no_grad():
        for batch in batches:
            h, votes = batch.inputs, 0.0
            for j, block in enumerate(blocks):
                h = block.body(h)
                scores = block.objective.head(h)
                votes = votes + 2**j * scores.softmax(dim=1)
                correct["weighted"][j] += int((votes.argmax(1) == batch.labels).sum())
                correct["single"][j] += int((scores.argmax(1) == batch.labels).sum())
    count = sum(len(batch.labels) for batch in batches)
    assert [block["ensemble_accuracy"] for block in summary.blocks] == [c / count for c in correct["weighted"]]
    assert [block["test_accuracy"] for block in summary.blocks] == [c / count for c in correct["single"]]
    assert summary.ensemble_accuracy == correct["weighted"][-1] / count != summary.test_accuracy
    written = json.loads((folder / "summary.json").read_text())
    assert written["ensemble_accuracy"] == summary.ensemble_accuracy


def test_votes_double_from_block_to_block():
    around, place = Around((2,), 2), Place(1, 2)
    objective = CrossEntropy(CrossEntropy.Config(), place, around)
    parts = Parts(nn.Identity(), Local(Local.Config(), place, around), objective)
    scores = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    below = torch.tensor([[4.0, 0.0], [0.0, 0.5]])
    tensors = {"h": scores, VOTES: below, "labels": torch.tensor([0, 0])}
    evaluator = Evaluator(parts, index=3)
    up = evaluator.run(Message(Kind.EVALUATION, 5, flags=Flags.SPLIT_END, split="test"), tensors, 0)
    torch.testing.assert_close(up[VOTES], below + 8 * scores.softmax(dim=1))
    sums = evaluator.result(Message(Kind.EVALUATION, 5, flags=Flags.SPLIT_END, split="test")).sums
    assert (sums["correct"], sums["ensemble_correct"], sums["num_samples"]) == (1, 2, 2)


# ---------------------------------------------------------------- where the run is


def test_status_and_metrics_count_the_batches_of_all_phases(greedy):
    folder, _, config = greedy
    plan = make_plan(config)
    status = json.loads((folder / "status.json").read_text())
    assert (status["batch"], status["num_batches"], status["epoch"]) == (plan.num_batches, plan.num_batches, 6)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    positions = [line["batch"] for line in lines if line["kind"] == "report"]
    assert positions == sorted(positions) and positions[-1] == plan.num_batches
    for line in lines:
        if line["kind"] == "report":
            assert line["batch"] == sum(block["version"] for block in line["blocks"])


def test_the_position_of_a_chain_is_its_last_blocks_or_the_sum_of_its_phases():
    local = make_plan(cnn_config())
    greedy = make_plan(cnn_config(schedule=SEQUENTIAL))
    assert local.position([9, 8, 8, 7]) == 7
    assert greedy.position([24, 24, 3, 0]) == 51
    assert (greedy.num_batches, greedy.num_epochs) == (BLOCKS * local.num_batches, BLOCKS * local.num_epochs)


@pytest.mark.parametrize(
    ("phase", "batch", "expected"),
    [
        (None, 0, "epoch 1/4  batch 0/40"), (None, 40, "epoch 4/4  batch 40/40"),
        (20, 19, "epoch 2/4  block0  batch 19/40"), (20, 20, "epoch 3/4  block1  batch 20/40"),
        (20, 40, "epoch 4/4  block1  batch 40/40"),
    ],
)  # fmt: skip
def test_progress_says_which_epoch_of_all_and_which_block_trains(phase, batch, expected):
    progress = TrainingProgress(40, 10, phase, enabled=False)
    progress._lines, progress._console = True, Console(file=io.StringIO(), width=200)
    progress.show(batch, 0.5, {"block0": {"loss": 1.25}, "block1": {"loss": None}})
    assert progress._console.file.getvalue().strip() == f"{expected}  test accuracy 50.00%  losses 1.250"
    progress.close()


def test_a_run_says_at_its_start_how_many_epochs_it_has_in_all(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(TrainingProgress, "say", lambda self, text: said.append(text))
    run(tmp_path / "run", schedule=SEQUENTIAL, training={"epochs": 2}, data={"size": 64})
    assert "training 3 blocks one after another, 2 epochs each, 6 in all, 24 batches" in said


# ---------------------------------------------------------------- orders


class StoppedIn(InProcessCluster):
    """Presses Ctrl-C as soon as a block has trained on some batches."""

    def __init__(self, name):
        super().__init__()
        self.name, self.seen = name, []

    def poll(self, wait_s):
        ended = super().poll(1e-3)
        statuses = self.reports()
        if not self.seen and statuses[self.name]["version"] > 1:
            self.seen.append(statuses)
            signal.raise_signal(signal.SIGINT)
        return ended


@pytest.mark.parametrize("stopped", [0, 1, 2])
def test_a_stop_in_any_phase_ends_the_run_with_a_snapshot_of_every_block(tmp_path, stopped):
    cluster = StoppedIn(f"block{stopped}")
    sections = {"schedule": SEQUENTIAL, "training": {"epochs": 6}}
    summary = api.train(config_of(tmp_path / "run", **sections), progress=False, cluster=cluster)
    phase = 6 * 11
    assert cluster.seen and summary.status == "stopped"
    versions = [block["version"] for block in summary.blocks]
    assert versions[:stopped] == [phase] * stopped
    assert 1 < versions[stopped] < phase and versions[stopped + 1 :] == [0] * (2 - stopped)
    assert all(edge["in_flight"] == edge["buffered"] == 0 for edge in summary.edges)
    accuracies = [block["test_accuracy"] is not None for block in summary.blocks]
    assert accuracies == [j <= stopped for j in range(3)]
    assert (summary.test_accuracy is None) == (stopped < 2)
    checkpoint = newest_checkpoint(open_storage(str(tmp_path / "run" / "checkpoints")))[0]
    assert checkpoint.position == sum(versions) - 1
    assert [checkpoint.read(j)["version"] for j in range(3)] == versions
    assert api.evaluate(tmp_path / "run")["test"]["num_samples"] == 256
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["batch"]) == ("stopped", sum(versions))
    assert status["test_accuracy"] == summary.blocks[stopped]["test_accuracy"]


def test_a_block_that_waits_for_its_phase_hears_of_every_batch():
    """Its wait has a deadline, which a long phase below must not use up; a snapshot's order comes the same way."""
    chain = chain_of()
    chain.orders = {2: Flags.SNAPSHOT, PHASE + 1: Flags.SNAPSHOT}
    chain.train(0, BLOCKS * PHASE)
    heard = [(m.batch_id, m.flags) for m in chain.sent["block1->block2"] if m.kind is Kind.ORDERS]
    assert [batch_id for batch_id, _ in heard] == list(range(2 * PHASE))
    assert [batch_id for batch_id, flags in heard if flags & Flags.SNAPSHOT] == [2, PHASE + 1]
    assert not any(m.tensors for m in chain.sent["block1->block2"] if m.kind is Kind.ORDERS)
    taken = [[position for position, _ in found] for found in chain.restored_at]
    assert taken == [[2, PHASE + 1]] * BLOCKS


def test_new_blocks_that_take_over_in_any_phase_go_on_bit_for_bit():
    undisturbed, chain = chain_of(), chain_of()
    undisturbed.train(0, BLOCKS * PHASE)
    for batch_id in (0, PHASE - 1, PHASE + 3, 3 * PHASE + 1):
        chain.take_over_after(batch_id)
    chain.train(0, BLOCKS * PHASE)
    assert chain.digests() == undisturbed.digests()


@pytest.mark.parametrize("schedule", ["pipeline", "sequential"])
def test_the_raw_input_is_read_to_its_end_by_blocks_that_need_it_whoever_trains(tmp_path, schedule):
    objective = {"name": None, "factory": "tests.methods.scalar_blocks:NeedsRawInput"}
    sections = {"schedule": {"name": schedule}, "objective": objective, "evaluation": {"every_batches": 4}}
    summary = run(tmp_path / "run", **sections)
    assert summary.status == "completed"
    assert {edge["name"] for edge in summary.edges} >= {"source->block1:raw", "source->block2:raw"}
    assert all(edge["in_flight"] == edge["buffered"] == 0 for edge in summary.edges)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("rule", ["backprop", "feedback_alignment", "direct_feedback_alignment"])
def test_a_rule_with_feedback_is_refused(rule):
    with pytest.raises(UserError, match=rf"schedule\.name: got 'sequential' with rule '{rule}', whose feedback comes"):
        cnn_config(rule={"name": rule}, schedule=SEQUENTIAL)


def test_a_delay_is_refused():
    with pytest.raises(UserError, match=r"schedule\.delay_per_hop: got 1\.0 .*no feedback to delay"):
        cnn_config(rule={"name": "local"}, schedule={**SEQUENTIAL, "delay_per_hop": 1})


def test_one_block_is_one_phase():
    chain = chain_of(network={**CNN, "blocks": 1})
    chain.train(0, PHASE)
    assert chain.plan.num_batches == PHASE and chain.blocks[0].updates == PHASE
