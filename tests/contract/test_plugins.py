import importlib
import inspect
import sys
import textwrap

import pytest
import torch

import actors.objectives
import actors.rules
from actors.errors import UserError
from actors.learning_rule import LearningRule
from actors.needs import Feedback, Place
from actors.objective import Objective
from actors.plugins import find_plugin, import_plugin, plugin_class, plugin_names
from orchestrator.api import train
from orchestrator.catalog import find_catalog
from tests.contract.plugin_chain import BATCHES, Chain, chain_config

RULES, OBJECTIVES = plugin_names("rule"), plugin_names("objective")
PLUGINS = [("rule", name) for name in RULES] + [("objective", name) for name in OBJECTIVES]
PAIRS = [{"rule": {"name": name}} for name in RULES] + [{"objective": {"name": name}} for name in OBJECTIVES]
LOCKS = {"forward", "update", "backward"}
LOCAL_RULE = """
    from pydantic import Field

    from actors.learning_rule import LearningRule, RuleConfig, Sent
    from actors.needs import Needs

    class Scaled(LearningRule):
        '''Follows its own loss, scaled.'''

        paper = "none"
        removes_locks = ("update", "backward")

        class Config(RuleConfig):
            scale: float = Field(default=1.0, gt=0)

        @classmethod
        def needs(cls, config, place):
            return Needs(fields=frozenset({"labels"}))

        def now(self, p, credit):
            p.vjp(credit * self.config.scale, weights=True, input=False)
            return Sent(complete=True)
"""


def named(pair):
    return " ".join(section["name"] for section in pair.values())


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Write modules into a folder that is on sys.path; forget them afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            parent, _, child = name.rpartition(".")
            del sys.modules[name]
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(child, None)


@pytest.fixture
def plugin_file(file, tmp_path, monkeypatch):
    """Write a file as if it lay in a plug-in folder of the package."""

    def write(kind, name, text):
        package = {"rule": actors.rules, "objective": actors.objectives}[kind]
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / kind)])
        file(f"{kind}/{name}", text)

    return write


# ---------------------------------------------------------------- every plug-in


def test_there_are_rules_and_objectives():
    assert {"backprop", "local"} <= set(RULES)
    assert "cross_entropy" in OBJECTIVES


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_a_plugin_constructs_with_its_defaults_and_says_what_it_is(kind, name):
    plugin = find_plugin(kind, name)
    config = plugin.Config()
    assert plugin.Config(**config.model_dump()) == config
    assert plugin.paper.strip()
    assert plugin.__doc__ and inspect.getdoc(plugin).split("\n")[0].strip()
    assert "Config" in vars(plugin) or not plugin.Config.model_fields
    with pytest.raises(ValueError, match="no_such_key"):
        plugin.Config(no_such_key=1)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_declares_what_wiring_can_make(name):
    rule = find_plugin("rule", name)
    assert set(rule.removes_locks) <= LOCKS
    for num_blocks in (1, 2, 5):
        for index in range(num_blocks):
            needs = rule.needs(rule.Config(), Place(index, num_blocks))
            assert (needs.feedback is Feedback.NONE) == (needs.origins == ())
            assert all(index < origin < num_blocks for origin in needs.origins)
            assert list(needs.origins) == sorted(needs.origins), "nearest first"


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_a_toy_task_is_learned_with_finite_gradients(pair):
    chain = Chain(chain_config(**pair))
    chain.train(0, BATCHES)
    assert chain.finite
    assert all(block.updates == BATCHES for block in chain.blocks), "every batch reached every block"
    assert any(chain.losses)
    for losses in filter(None, chain.losses):
        start, end = sum(losses[:6]) / 6, sum(losses[-6:]) / 6
        assert end < 0.9 * start, losses
    fresh = Chain(chain_config(**pair)).digests()
    for (body, _), (start, _) in zip(chain.digests(), fresh, strict=True):
        trained = [name for name in body if not name.endswith(".0.bias")]  # batch norm takes that bias out again
        assert all(body[name] != start[name] for name in trained), "every weight of every block was trained"


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_training_is_determined_by_the_seed(pair):
    def trained(seed):
        torch.manual_seed(len(chains))  # the global generator is another every time
        chain = Chain(chain_config(seed=seed, **pair))
        chain.train(0, 5)
        chains.append(chain)
        return chain.digests(), chain.losses

    chains = []
    first = trained(1)
    assert trained(1) == first
    assert trained(2) != first


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_a_restored_block_is_the_same_and_goes_on_alike(pair, optimizer, accumulate):
    settings = {"name": optimizer, "lr": 0.01, **({"momentum": 0.9} if optimizer == "sgd" else {})}
    own = {"optimizer": settings, "training": {"epochs": 3, "accumulate": accumulate}, **pair}
    original, restored = Chain(chain_config(**own)), Chain(chain_config(**own))
    original.train(0, 5)
    assert original.digests() != restored.digests()
    restored.restore_from(original)
    assert restored.digests() == original.digests()
    for block, source in zip(restored.blocks, original.blocks, strict=True):
        assert (block.version, block.updates) == (source.version, source.updates)
    before = original.digests()
    for chain in (original, restored):
        chain.train(5, 9)
    assert original.digests() == restored.digests() != before
    assert [losses[-4:] for losses in original.losses] == [losses[-4:] for losses in restored.losses]


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_gradients_of_unfinished_updates_are_part_of_a_snapshot(pair):
    """Without a last batch in between, so that two of three accumulated batches are held at the snapshot."""
    own = {"training": {"epochs": 3, "accumulate": 3}, **pair}
    few = find_plugin("rule", own.get("rule", {"name": "local"})["name"]).fewest_blocks
    original, restored = Chain(chain_config(blocks=few, **own)), Chain(chain_config(blocks=few, **own))
    for batch_id in range(5):
        one_batch(original, batch_id)
    restored.restore_from(original)
    assert original.blocks[0].snapshot()["accumulated"]["weights"] == 2
    assert original.blocks[0].snapshot()["gradients"].keys() == restored.blocks[0].snapshot()["gradients"].keys()
    for chain in (original, restored):
        one_batch(chain, 5)
    assert original.blocks[0].updates == restored.blocks[0].updates == 2
    assert original.digests() == restored.digests()


def one_batch(chain, batch_id):
    message = chain.message(batch_id, False)
    sent = chain.blocks[0].now(message)
    chain.blocks[0].finish_use()
    assert sent.complete, "the first of so few blocks has its last credit at once"
    chain.blocks[0].update(message.flags)


# ---------------------------------------------------------------- declared feedback


@pytest.mark.parametrize("name", RULES)
def test_feedback_edges_are_those_declared_and_each_is_used(name):
    chain = Chain(chain_config(rule={"name": name}, blocks=4))
    rule = find_plugin("rule", name)
    needs = [rule.needs(rule.Config(), Place(index, 4)) for index in range(4)]
    wiring = chain.plan.wiring
    late = [[late.origin for late in edges.late] for edges in wiring.blocks]
    assert late == [list(need.origins) for need in needs]
    forward = {*wiring.source.up, *(edges.up for edges in wiring.blocks if edges.up)}
    feedback = {edge.name for edge in wiring.edges} - forward
    if all(need.feedback is Feedback.NONE for need in needs):
        assert not feedback
    used = chain.train(0, 4)
    assert used - forward == feedback, "a declared message that is never sent would block its receiver"


@pytest.mark.parametrize("name", RULES)
def test_a_rule_without_feedback_declares_both_locks_removed(name):
    rule = find_plugin("rule", name)
    needs = [rule.needs(rule.Config(), Place(index, 3)) for index in range(3)]
    if all(need.feedback is Feedback.NONE for need in needs):
        assert {"update", "backward"} <= set(rule.removes_locks)


@pytest.mark.parametrize("name", RULES)
def test_blocks_wait_for_an_answer_exactly_if_the_rule_keeps_the_update_lock(name):
    """Every block gets one batch and no feedback at all."""
    chain = Chain(chain_config(rule={"name": name}))
    message, waits = chain.message(0, False), []
    for block in chain.blocks:
        sent = block.now(message)
        waits.append(not sent.complete)
        up = sent.up
        message = type(message)(message.kind, 0, tensors={"h": up, "labels": message.tensors["labels"]})
    assert any(waits) == ("update" not in chain.blocks[0].rule.removes_locks)
    assert not waits[-1], "nothing is above the last block"


# ---------------------------------------------------------------- new plug-ins


def test_a_new_file_in_the_folder_is_a_rule(plugin_file):
    plugin_file("rule", "scaled", LOCAL_RULE)
    assert "scaled" in plugin_names("rule")
    assert find_plugin("rule", "scaled").__name__ == "Scaled"
    assert find_catalog().rules["scaled"].summary == "Follows its own loss, scaled."
    chain = Chain(chain_config(rule={"name": "scaled", "scale": 0.5}))
    chain.train(0, BATCHES)
    assert all(losses[-1] < losses[0] for losses in chain.losses)
    with pytest.raises(UserError, match=r"rule\.scael: unknown key, .*did you mean 'scale'\?"):
        chain_config(rule={"name": "scaled", "scael": 0.5})


def test_a_new_rule_is_gone_with_its_file():
    assert "scaled" not in plugin_names("rule")
    assert "actors.rules.scaled" not in sys.modules
    assert not hasattr(actors.rules, "scaled")


def test_a_new_file_in_the_folder_is_an_objective(plugin_file):
    plugin_file(
        "objective",
        "half",
        """
        from actors.objective import ObjectiveConfig
        from actors.objectives.cross_entropy import CrossEntropy

        class Half(CrossEntropy):
            '''Half the cross-entropy.'''

            def forward(self, h, batch):
                return super().forward(h, batch) / 2
        """,
    )
    assert find_plugin("objective", "half").__name__ == "Half"
    whole, half = Chain(chain_config()), Chain(chain_config(objective={"name": "half"}))
    for chain in (whole, half):
        chain.train(0, 1)
    assert [losses[0] for losses in whole.losses] == [2 * losses[0] for losses in half.losses]


def test_a_rule_of_the_users_package_is_trained_with(file, tmp_path):
    file("theirs/__init__", "")
    file("theirs/credit", LOCAL_RULE)
    section = {"factory": "theirs.credit:Scaled", "scale": 1.0}
    mine, built_in = Chain(chain_config(rule=section)), Chain(chain_config(rule={"name": "local"}))
    for chain in (mine, built_in):
        chain.train(0, 6)
    assert mine.digests() == built_in.digests(), "the same rule by another way"
    config = chain_config(rule=section, run_dir=str(tmp_path / "run"))
    summary = train(config, progress=False)
    assert summary.status == "completed"
    assert summary.test_accuracy > 0.5, "four classes"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scael": 2.0}, r"rule\.scael: unknown key, .*did you mean 'scale'\?"),
        ({"scale": -1.0}, r"rule\.scale: got -1\.0, expected "),
        ({"scale": "much"}, r"rule\.scale: got 'much', expected "),
    ],
)
def test_settings_of_the_users_rule_are_validated(file, settings, message):
    file("theirs", LOCAL_RULE)
    with pytest.raises(UserError, match=message):
        chain_config(rule={"factory": "theirs:Scaled", **settings})


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("kind", "wrong", "nearest"), [("rule", "locl", "local"), ("objective", "cross_entrpy", "cross_entropy")]
)
def test_an_unknown_plugin_is_refused_with_the_nearest_name(kind, wrong, nearest):
    with pytest.raises(UserError, match=rf"{kind}\.name: got {wrong!r}, .*did you mean {nearest!r}\?.*{kind}\.factory"):
        find_plugin(kind, wrong)


@pytest.mark.parametrize("wrong", ["zzzz", "", "../local", "actors.rules.local"])
def test_a_plugin_that_resembles_nothing_is_refused(wrong):
    with pytest.raises(UserError, match=r"rule\.name: got ") as refusal:
        find_plugin("rule", wrong)
    assert all(name in str(refusal.value) for name in RULES)


@pytest.mark.parametrize(("text", "count"), [("", 0), (LOCAL_RULE + "\n    class Twice(Scaled): pass\n", 2)])
def test_a_plugin_file_holds_one_class(plugin_file, text, count):
    plugin_file("rule", "crowd", text)
    with pytest.raises(UserError, match=rf"actors\.rules\.crowd holds {count} classes of LearningRule, expected one"):
        find_plugin("rule", "crowd")


@pytest.mark.parametrize("path", ["theirs", "theirs:", "", ":", ":Scaled"])
def test_a_malformed_factory_is_refused(path):
    with pytest.raises(UserError, match=r"rule\.factory: ") as refusal:
        import_plugin("rule", path)
    assert repr(path) in str(refusal.value)


@pytest.mark.parametrize("path", ["no_such_package:Rule", "theirs:Missing", "broken:Rule", "..theirs:Scaled"])
def test_a_factory_that_does_not_import_is_refused(file, path):
    file("theirs", LOCAL_RULE)
    file("broken", "raise RuntimeError('half-written')")
    with pytest.raises(UserError, match=r"rule\.factory: .* does not import"):
        import_plugin("rule", path)


@pytest.mark.parametrize(
    ("kind", "path", "base"),
    [
        ("rule", "actors.objectives.cross_entropy:CrossEntropy", LearningRule),
        ("objective", "actors.rules.local:Local", Objective),
        ("rule", "torch.nn:Linear", LearningRule),
        ("rule", "math:pi", LearningRule),
    ],
)
def test_a_factory_of_another_kind_is_refused(kind, path, base):
    expected = rf"{kind}\.factory: .*expected a subclass of {base.__module__}\.{base.__name__}"
    with pytest.raises(UserError, match=expected):
        import_plugin(kind, path)


def test_a_plugin_is_named_in_one_of_two_ways():
    assert plugin_class("rule", name="local", factory=None) is find_plugin("rule", "local")
    assert plugin_class("rule", name=None, factory="actors.rules.local:Local") is find_plugin("rule", "local")
    with pytest.raises(UserError, match="rule: got neither name nor factory"):
        plugin_class("rule", name=None, factory=None)
