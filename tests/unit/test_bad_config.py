import re
import shutil
from pathlib import Path

import pytest

from actors.errors import UserError
from orchestrator.catalog import find_catalog
from orchestrator.config import config_from_mapping, load_runs

BASE = Path(__file__).parents[2] / "configs" / "digits_cnn.yaml"
CATALOG = find_catalog()


def refusal(*overrides, files=(BASE,)):
    with pytest.raises(UserError) as caught:
        load_runs(files, overrides, CATALOG)
    return checked(str(caught.value))


def checked(message):
    """Return the message, after checking that it is one readable sentence."""
    assert "\n" not in message, message
    assert re.search(r"[\w)'?/]$", message), message
    assert not re.search(r"pydantic|https?://|omegaconf|Traceback|instance of|<class", message, re.IGNORECASE), message
    assert "  " not in message and "; " in message, message
    return message


def contains(message, fragments):
    for fragment in fragments:
        assert fragment in message, f"{fragment!r} is not in {message!r}"


UNKNOWN = [
    ("trainig.epochs=3", ["trainig: unknown key", "did you mean 'training'?"]),
    ("nonsense=1", ["nonsense: unknown key", "run_dir", "remove it"]),
    ("data.batchsize=3", ["data.batchsize: unknown key", "did you mean 'batch_size'?"]),
    ("training.epoch=3", ["training.epoch: unknown key", "did you mean 'epochs'?"]),
    ("buffers.capacty=3", ["buffers.capacty: unknown key", "did you mean 'capacity'?"]),
    ("placement.backed=ray", ["placement.backed: unknown key", "did you mean 'backend'?"]),
    ("optimizer.schedule.nam=step", ["optimizer.schedule.nam: unknown key", "did you mean 'name'?"]),
    ("network.chanels=[1]", ["network.chanels: unknown key", "pool_after", "did you mean 'channels'?"]),
    ("rule.lr=3", ["rule.lr: unknown key", "expected one of name, factory", "remove it"]),
    ("rule.nme=local", ["rule.nme: unknown key", "did you mean 'name'?"]),
    ("objective.hed=3", ["objective.hed: unknown key", "did you mean 'head'?"]),
    ("objective.head.dpeth=3", ["objective.head.dpeth: unknown key", "did you mean 'depth'?"]),
    ("optimizer.momentun=0.9", ["optimizer.momentun: unknown key", "did you mean 'momentum'?"]),
    ("optimizer.heads.momentun=1", ["optimizer.heads.momentun: unknown key", "did you mean 'momentum'?"]),
    ("optimizer.blocks.1.lrr=1", ["optimizer.blocks.1.lrr: unknown key", "did you mean 'lr'?"]),
    ("optimizer.betas=[0.9,0.99]", ["optimizer.betas: unknown key", "momentum"]),
    ("data.classes=3", ["data.classes: unknown key", "batch_size", "remove it"]),
    ("data.name=digit", ["data.name: got 'digit'", "fashion_mnist", "did you mean 'digits'?"]),
    ("network.name=cn", ["network.name: got 'cn'", "resnet", "did you mean 'cnn'?"]),
    ("rule.name=backprob", ["rule.name: got 'backprob'", "local", "did you mean 'backprop'?"]),
    ("objective.name=crossentropy", ["objective.name: got 'crossentropy'", "did you mean 'cross_entropy'?"]),
    ("optimizer.name=adamn", ["optimizer.name: got 'adamn'", "rmsprop", "did you mean 'adam"]),
    ("optimizer.heads.name=adm", ["optimizer.heads.name: got 'adm'", "did you mean 'adam'?"]),
    ("schedule.name=pipelin", ["schedule.name: got 'pipelin'", "'pipeline', 'lockstep'"]),
]

WRONG = [
    ("data=3", ["data: got 3", "a section with keys"]),
    ("network=mlp", ["network: got 'mlp'", "a section with keys"]),
    ("optimizer.schedule=cosine", ["optimizer.schedule: got 'cosine'", "a section with keys"]),
    ("optimizer.options=3", ["optimizer.options: got 3", "a section with keys"]),
    ("objective.head=3", ["objective.head: got 3", "a section with keys"]),
    ("training.epochs.x=3", ["training.epochs: got {'x': 3}", "an integer"]),
    ("training.epochs=many", ["training.epochs: got 'many'", "an integer"]),
    ("training.epochs=1.5", ["training.epochs: got 1.5", "an integer"]),
    ("training.epochs=null", ["training.epochs: got None", "an integer"]),
    ("training.compile=maybe", ["training.compile: got 'maybe'", "a boolean"]),
    ("optimizer.lr=fast", ["optimizer.lr: got 'fast'", "a number"]),
    ("optimizer.lr=.inf", ["optimizer.lr: got inf", "a finite number"]),
    ("optimizer.heads.lr=fast", ["optimizer.heads.lr: got 'fast'", "a number"]),
    ("optimizer.blocks.x.lr=1", ["optimizer.blocks.x: got 'x'", "an integer"]),
    ("optimizer.blocks.4.lr=1", ["optimizer.blocks.4", "0 to 3"]),
    ("network.blocks=two", ["network.blocks: got 'two'", "an integer or 'auto'"]),
    ("network.cuts=conv1", ["network.cuts: got 'conv1'", "a list"]),
    ("network.channels=[8,x]", ["network.channels.1: got 'x'", "an integer"]),
    ("objective.head.depth=deep", ["objective.head.depth: got 'deep'", "an integer"]),
    ("data.augment=5", ["data.augment: got 5", "a boolean or a list"]),
    ("data.root=5", ["data.root: got 5", "a string"]),
    ("run_dir=[1]", ["run_dir: got [1]", "a string"]),
    ("seed=abc", ["seed: got 'abc'", "an integer"]),
    ("placement.backend=rey", ["placement.backend: got 'rey'", "'ray' or 'in_process'"]),
    ("placement.cpus_per_block=many", ["placement.cpus_per_block: got 'many'", "a number or 'auto'"]),
    ("training.precision=fp8", ["training.precision: got 'fp8'", "'fp32'"]),
    ("seed=-1", ["seed: got -1", "at least 0"]),
    ("data.batch_size=0", ["data.batch_size: got 0", "at least 1"]),
    ("data.limit=-5", ["data.limit: got -5", "at least 1"]),
    ("data.validation=-0.1", ["data.validation: got -0.1", "at least 0"]),
    ("data.workers=-1", ["data.workers: got -1", "at least 0"]),
    ("network.blocks=0", ["network.blocks: got 0", "1 or more"]),
    ("network.blocks=-2", ["network.blocks: got -2", "1 or more"]),
    ("network.channels=[-1]", ["network.channels.0: got -1", "greater than 0"]),
    ("optimizer.lr=-1", ["optimizer.lr: got -1", "at least 0"]),
    ("optimizer.heads.lr=-1", ["optimizer.heads.lr: got -1", "at least 0"]),
    ("optimizer.clip=0", ["optimizer.clip: got 0", "greater than 0"]),
    ("optimizer.schedule.warmup_epochs=-1", ["optimizer.schedule.warmup_epochs: got -1", "at least 0"]),
    ("training.epochs=0", ["training.epochs: got 0", "at least 1"]),
    ("training.accumulate=-1", ["training.accumulate: got -1", "at least 1"]),
    ("buffers.capacity=0", ["buffers.capacity: got 0", "at least 1"]),
    ("buffers.window=5", ["buffers.window: got 5", "buffers.capacity = 4"]),
    ("schedule.delay_per_hop=-0.5", ["schedule.delay_per_hop: got -0.5", "at least 0"]),
    ("placement.gpus_per_block=-1", ["placement.gpus_per_block: got -1", "at least 0"]),
    ("placement.cpus_per_block=-1", ["placement.cpus_per_block: got -1", "at least 0"]),
    ("placement.blocks.1=3", ["placement.blocks.1", "a section"]),
    ("placement.blocks.9.gpus=1", ["placement.blocks.9: expected the index of a block, 0 to"]),
    ("placement.blocks.1.gpus=1.5", ["placement.blocks.1: got", "gpus below 1 or a whole number"]),
    ("placement.blocks.1.gpu=1", ["placement.blocks.1", "gpu"]),
    ("placement.blocks_per_actor=0", ["placement.blocks_per_actor: got 0", "at least 1"]),
    ("placement.blocks_per_actor=9", ["placement.blocks_per_actor: got 9", "the number of blocks, 4"]),
    ("placement.wait_s=-1", ["placement.wait_s: got -1", "at least 0"]),
    ("placement.threads=0", ["placement.threads: got 0", "at least 1"]),
    ("placement.deadline_s=0", ["placement.deadline_s: got 0", "greater than 0"]),
    ("evaluation.batch_size=0", ["evaluation.batch_size: got 0", "at least 1"]),
    ("evaluation.every_batches=5", ["evaluation: got", "every_batches or every_epochs, not both"]),
    ("wire=fp8", ["wire: got 'fp8'", "'fp32', 'bf16', 'fp16' or 'int8'"]),
    ("wire.feedback=8", ["wire.feedback: got 8", "'fp32', 'bf16', 'fp16' or 'int8'"]),
    ("seed=[1,1]", ["seed: got [1, 1]", "every seed once"]),
    ("seed=[]", ["seed: got []", "every seed once"]),
    ("seed=[1,x]", ["seed: got 'x'", "an integer"]),
]

BOTH = {"data": "digits", "network": "cnn", "rule": "local", "objective": "cross_entropy"}
MALFORMED = ["epochs", "=3", "training..epochs=3", "network.channels[0]=3", "--fresh=3", "1=3", "a b=3"]


@pytest.mark.parametrize(("override", "fragments"), UNKNOWN, ids=[row[0] for row in UNKNOWN])
def test_an_unknown_key_or_name_is_refused_with_the_nearest_known_one(override, fragments):
    contains(refusal(override), fragments)


@pytest.mark.parametrize(("override", "fragments"), WRONG, ids=[row[0] for row in WRONG])
def test_a_wrong_value_is_refused_with_its_path_and_what_is_expected(override, fragments):
    contains(refusal(override), fragments)


CANNOT_SHARE = [
    (["placement.backend=in_process"], ["'in_process'", "expected 1"]),
    (["placement.pin_cpus=true"], ["with placement.pin_cpus"]),
    (["training.compile=true"], ["with training.compile"]),
    (["placement.blocks.1.labels.rack=b"], ["blocks 0 to 1 share an actor", "labels {} and {'rack': 'b'}"]),
    (["placement.blocks.3.accelerator_type=L4"], ["blocks 2 to 3 share an actor", "accelerator_type None and 'L4'"]),
    (["placement.gpus_per_block=0.75"], ["blocks 0 to 1 share an actor and 1.5 GPUs", "at most 1 or a whole number"]),
]


@pytest.mark.parametrize(("overrides", "fragments"), CANNOT_SHARE, ids=[row[0][0] for row in CANNOT_SHARE])
def test_blocks_that_cannot_share_an_actor_are_refused(overrides, fragments):
    message = refusal("placement.blocks_per_actor=2", *overrides)
    assert message.startswith("placement.blocks_per_actor: got 2")
    contains(message, fragments)


NOT_DIRECT = [
    ("placement.backend=in_process", ["with placement.backend 'in_process'", "expected 'ray'"]),
    ("placement.same_node=socket", ["with placement.same_node 'socket'", "expected 'object_store'"]),
    ("wire=bf16", ["with wire 'bf16', expected 'fp32'"]),
    ("wire={activation: fp32, feedback: int8}", ["with wire 'int8', expected 'fp32'"]),
]


@pytest.mark.parametrize(("override", "fragments"), NOT_DIRECT, ids=[row[0] for row in NOT_DIRECT])
def test_what_a_direct_transport_cannot_do_is_refused(override, fragments):
    message = refusal("placement.device_transport=rdt", override)
    assert message.startswith("placement.device_transport: got 'rdt' with ")
    contains(message, fragments)


def test_a_direct_transport_may_stand_beside_what_says_the_same():
    load_runs((BASE,), ["placement.device_transport=rdt", "wire={activation: fp32}"], CATALOG)
    contains(refusal("placement.device_transport=gloo"), ["placement.device_transport: got 'gloo'", "'host' or 'rdt'"])


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("schedule.delay_per_hop=0.5", ["schedule.delay_per_hop: got 0.5", "'local'", "has no feedback to delay"]),
        ("schedule.late=stash", ["schedule.late: got 'stash'", "'local'", "pulls no late credit through weights"]),
        ("schedule.input_delay=2", ["schedule.input_delay: got 2", "'local'", "is not driven by the raw input"]),
    ],
)
def test_a_delay_of_what_a_rule_does_not_have_is_refused(override, fragments):
    contains(refusal(override), fragments)


REPLAY = [
    ("buffers.order=lifo", ["buffers.order: got 'lifo' with schedule 'pipeline'", "has no replay buffer"]),
    ("buffers.max_reuse=2", ["buffers.max_reuse: got 2", "set schedule.name=replay"]),
    ("buffers.on_full=drop", ["buffers.on_full: got 'drop', expected", "'drop_oldest'"]),
    ("staleness.max=-1", ["staleness.max: got -1, expected"]),
    ("staleness.max=two", ["staleness.max: got 'two'", "an integer"]),
    ("buffers.mode=automatic", ["buffers.mode: got 'automatic', expected 'fixed' or 'auto'"]),
    ("buffers.budget_bytes=9", ["buffers.budget_bytes: got 9 with buffers.mode 'fixed'", "set buffers.mode=auto"]),
    ("buffers.samples_per_insert=2", ["buffers.samples_per_insert: got 2", "has no replay buffer"]),
    ("staleness.mx=1", ["staleness.mx: unknown key", "did you mean 'max'?"]),
    ("faults.pad=0.5", ["faults.pad: got 0.5, expected"]),
    ("faults.slow=[{block: 9, factor: 2}]", ["faults.slow.9: expected the index of a block, 0 to 3"]),
    ("faults.kill=block1", ["faults.kill: got 'block1', expected a list"]),
    ("faults.kill=[{actor: head}]", ["faults.kill.0.actor: got 'head'", "expected block0, block1"]),
    ("recovery.restarts=3", ["recovery.restarts: unknown key"]),
    ("recovery.step_deadline_s=-1", ["recovery.step_deadline_s: got -1", "more than 0, or auto"]),
    ("checkpoint.every_batches=0", ["checkpoint.every_batches: got 0, expected at least 1"]),
    ("checkpoint={every_batches: 3, every_s: 2}", ["expected every_batches or every_s, not both"]),
    ("checkpoint.keep=0", ["checkpoint.keep: got 0, expected at least 1"]),
    ("schedule.feedback=as_it_arrives", ["schedule.feedback: got 'as_it_arrives'", "a rule with feedback"]),
]


@pytest.mark.parametrize(("override", "fragments"), REPLAY, ids=[row[0] for row in REPLAY])
def test_settings_of_staleness_buffers_and_faults_are_validated(override, fragments):
    contains(refusal(override), fragments)


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["buffers.on_full=drop_oldest", "buffers.samples_per_insert=3", "buffers.max_reuse=2"], ["never catch up"]),
        (["buffers.samples_per_insert=1", "staleness.max=2"], ["may forbid the use that pacing waits for"]),
        (["buffers.window=9", "buffers.capacity=4"], ["buffers.window: got 9, expected at most buffers.capacity = 4"]),
        (["buffers.samples_per_insert=.inf"], ["buffers.samples_per_insert: got inf", "a finite number"]),
        (["buffers.tolerance=.inf"], ["buffers.tolerance: got inf", "a finite number"]),
        (["buffers.samples_per_insert=0"], ["buffers.samples_per_insert: got 0", "greater than 0"]),
        (["buffers.samples_per_insert=1", "buffers.max_reuse=2"], ["a full buffer waits for max_reuse uses"]),
        (
            ["buffers.on_full=drop_oldest", "buffers.samples_per_insert=4", "buffers.tolerance=2"],
            ["buffers: tolerance 2, expected at least 4"],
        ),
        (["buffers.max_reuse=0"], ["buffers.max_reuse: got 0", "at least 1"]),
    ],
)
def test_replay_that_could_stop_for_ever_is_refused_with_the_reason(overrides, fragments):
    contains(refusal("schedule.name=replay", *overrides), fragments)


def test_a_replay_buffer_is_not_sized_by_waits():
    message = refusal("schedule.name=replay", "buffers.mode=auto")
    contains(message, ["buffers.mode: got 'auto' with schedule 'replay', expected 'fixed'", "set buffers.mode=fixed"])


@pytest.mark.parametrize("schedule", ["pipeline", "lockstep", "sequential"])
def test_buffers_that_change_no_weight_may_be_sized_by_waits(schedule):
    (config,) = load_runs([BASE], [f"schedule.name={schedule}", "buffers.mode=auto", "buffers.budget_bytes=9"], CATALOG)
    assert (config.buffers.mode, config.buffers.budget_bytes) == ("auto", 9)


def test_feedback_of_the_last_block_under_replay_allows_one_use():
    own = ("schedule.name=replay", "schedule.feedback=as_it_arrives", "buffers.max_reuse=2")
    message = refusal("rule.name=direct_feedback_alignment", *own)
    contains(message, ["buffers.max_reuse: got 2, expected 1", "knows it by its batch"])


@pytest.mark.parametrize(
    "fixed",
    [
        ["rule.name=backprop", "schedule.delay_per_hop=1"],
        ["rule.name=synthetic_gradients", "rule.synthetic_inputs=true"],
        ["rule.name=synthetic_gradients", "rule.synthetic_inputs=true", "schedule.input_delay=2"],
    ],
)
@pytest.mark.parametrize("schedule", ["pipeline", "replay"])
def test_fixed_delays_of_what_is_handled_as_it_arrives_are_refused(schedule, fixed):
    message = refusal(*fixed, f"schedule.name={schedule}", "schedule.feedback=as_it_arrives")
    contains(message, ["schedule.feedback: got 'as_it_arrives' beside fixed delays", "set schedule.delay_per_hop=0"])


def test_late_credit_under_lockstep_is_refused():
    message = refusal("rule.name=backprop", "schedule.name=lockstep", "schedule.delay_per_hop=2")
    contains(message, ["schedule.delay_per_hop: got 2 with lockstep", "set schedule.delay_per_hop=0"])


@pytest.mark.parametrize("schedule", ["sequential", "replay"])
def test_a_schedule_that_a_rule_does_not_work_with_is_refused(schedule):
    message = refusal("rule.name=backprop", f"schedule.name={schedule}")
    contains(message, [f"schedule.name: got '{schedule}'", "'backprop'", "next_block", "one of pipeline, lockstep"])


@pytest.mark.parametrize("kind", BOTH)
def test_a_name_beside_a_factory_and_neither_of_them_are_refused(kind):
    both = refusal(f"{kind}.name={BOTH[kind]}", f"{kind}.factory=package.module:thing")
    contains(both, [f"{kind}: got name {BOTH[kind]!r} and factory 'package.module:thing'", "set the other to null"])
    neither = refusal(f"{kind}.name=null")
    contains(neither, [f"{kind}: got neither name nor factory", f"set {kind}.name to one of", BOTH[kind]])


@pytest.mark.parametrize("kind", ["data", "network"])
def test_a_config_without_data_or_network_is_refused(tmp_path, kind):
    raw = {"data": {"name": "digits"}, "network": {"name": "mlp"}}
    del raw[kind]
    with pytest.raises(UserError, match=f"^{kind}: got neither name nor factory"):
        config_from_mapping(raw, CATALOG)


@pytest.mark.parametrize("kind", ["rule", "objective"])
@pytest.mark.parametrize(
    ("factory", "fragment"),
    [("nowhere.at_all:Thing", "does not import"), ("json:Thing", "does not import"),
     ("json", "package.module:Class"), (":Thing", "does not import"), ("json:loads", "subclass")],
)  # fmt: skip
def test_a_rule_or_objective_factory_that_is_none_is_refused(kind, factory, fragment):
    message = refusal(f"{kind}.name=null", f"{kind}.factory={factory}")
    contains(message, [f"{kind}.factory:", repr(factory), fragment])


def test_a_factory_whose_module_is_broken_is_refused(tmp_path, monkeypatch):
    (tmp_path / "broken_module_of_the_test.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = refusal("rule.name=null", "rule.factory=broken_module_of_the_test:Thing")
    contains(message, ["rule.factory: 'broken_module_of_the_test:Thing' does not import (SyntaxError: "])


@pytest.mark.parametrize("override", MALFORMED)
def test_a_malformed_override_is_refused_with_an_example(override):
    contains(refusal(override), [repr(override), "expected key=value", "training.epochs=5"])


@pytest.mark.parametrize("value", ["[1", "{a", "${nope}"])
def test_an_override_whose_value_is_not_yaml_is_refused(value):
    refusal(f"training.epochs={value}")


def written(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["network: got neither name nor factory"]),
        ("# only a comment\n", ["network: got neither name nor factory"]),
        ("- data\n- network\n", ["bad.yaml: holds a list or a scalar", "expected sections such as `data:`"]),
        ("3\n", ["bad.yaml: holds a list or a scalar"]),
        ("hello\n", ["hello: unknown key"]),
        ("data: [1\nnetwork: 2\n", ["bad.yaml, line ", "not YAML", "correct the file"]),
        ("data:\n  name: digits\n bad: 3\n", ["bad.yaml, line 3: not YAML"]),
        ("seed: 1\nseed: 2\n", ["bad.yaml, line 2: not YAML", "seed"]),
        ("seed: !!python/object:os.system 1\n", ["bad.yaml, line 1: not YAML"]),
        (b"\xff\xfe\x00\xd8", ["bad.yaml: can't be read", "give a readable YAML file"]),
        (b"data: \x80\x81\n", ["bad.yaml: can't be read", "give a readable YAML file"]),
        ("7: 3\n", ["7: unknown key"]),
        ("data: {7: 3, name: digits}\n", ["data.options.7: got 7"]),
        ("data:\n  name: ${nowhere}\n", ["config: ", "interpolation"]),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path, text, fragments):
    contains(refusal(files=[written(tmp_path, text)]), fragments)


def test_a_file_that_is_missing_a_folder_or_unreadable_is_refused_by_name(tmp_path, monkeypatch):
    contains(refusal(files=[tmp_path / "none.yaml"]), ["none.yaml: no such config file", "configs/"])
    contains(refusal(files=[BASE, tmp_path]), [str(tmp_path), "can't be read"])
    locked = written(tmp_path, "seed: 1\n")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(locked))

    monkeypatch.setattr("orchestrator.config.load.OmegaConf.load", refuse)
    contains(refusal(files=[locked]), ["bad.yaml: can't be read", "Permission denied"])


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    contains(refusal("training.compile=true"), ["training.compile: got true", "C++ compiler", "install g++"])
    assert load_runs([BASE], [], CATALOG)


def test_the_first_of_several_mistakes_is_told_and_the_others_are_counted():
    message = refusal("training.epochs=0", "training.accumulate=0", "buffers.capacity=0")
    assert message.endswith("(and 2 more)")


@pytest.mark.parametrize("uri", ["memory://runs", "simplecache::memory://runs"])
def test_checkpoints_in_a_process_s_memory_are_refused_where_blocks_have_their_own(uri):
    fragments = [f"checkpoint.uri: got {uri!r}, which each process has for itself", "give a shared folder"]
    contains(refusal("placement.backend=ray", f"checkpoint.uri={uri}"), fragments)
    load_runs((BASE,), ["placement.backend=in_process", f"checkpoint.uri={uri}"], CATALOG)
