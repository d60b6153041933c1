import subprocess
import sys

import pytest
import torch
from torch import nn

from actors.errors import UserError
from actors.needs import Needs
from actors.optimizers import (
    GroupOptimizer,
    OptimizerSpec,
    RateSchedule,
    group_optimizers,
    optimizer_arguments,
)
from actors.spec import RawInput
from orchestrator.catalog import find_catalog
from orchestrator.config import config_from_mapping
from orchestrator.plan import Plan
from orchestrator.specs import optimizer_specs
from orchestrator.wiring import wire

CATALOG = find_catalog()


def factors(schedule, updates):
    return [schedule.factor(update) for update in updates]


def test_a_constant_rate_stays():
    assert factors(RateSchedule(total=10), (0, 5, 10, 99)) == [1.0, 1.0, 1.0, 1.0]


def test_the_rate_rises_over_the_warm_up_in_equal_steps_and_never_starts_at_zero():
    assert factors(RateSchedule(warmup=4, total=10), range(6)) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_starts_at_one_is_half_in_the_middle_and_ends_at_zero():
    schedule = RateSchedule("cosine", warmup=2, total=12)
    assert factors(schedule, (0, 1, 2)) == [0.5, 1.0, 1.0]
    assert schedule.factor(7) == pytest.approx(0.5)
    assert schedule.factor(12) == pytest.approx(0.0, abs=1e-15) and schedule.factor(500) == schedule.factor(12)
    falling = factors(schedule, range(2, 13))
    assert falling == sorted(falling, reverse=True)


def test_cosine_whose_warm_up_fills_the_run_does_not_fail():
    assert RateSchedule("cosine", warmup=5, total=5).factor(4) == 1.0


def test_step_multiplies_at_each_milestone():
    schedule = RateSchedule("step", milestones=(3, 5), gamma=0.5, total=10)
    assert factors(schedule, (0, 2, 3, 4, 5, 9)) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("name", sorted(optimizer_arguments()))
def test_every_optimizer_steps_as_torch_s_own_does(name):
    ours, theirs = (nn.Linear(3, 2, bias=name != "muon") for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = GroupOptimizer(OptimizerSpec(name, {"lr": 0.1}), list(ours.parameters()))
    reference = type(optimizer.optimizer)(theirs.parameters(), lr=0.1)
    for update in range(3):
        for layer in (ours, theirs):
            layer(torch.ones(4, 3)).square().sum().backward()
        optimizer.step(update, 1)
        reference.step()
        reference.zero_grad()
    assert torch.equal(ours.weight, theirs.weight) and ours.weight.grad is None


def test_a_life_of_an_optimizer_does_not_import_torch_s_compiler():
    code = (
        "import sys, torch; from actors.optimizers import GroupOptimizer, OptimizerSpec\n"
        "from actors.compiler import prefer_deterministic\n"
        "prefer_deterministic(True, compiles=False)\n"
        "assert torch.are_deterministic_algorithms_enabled()\n"
        "weight = torch.nn.Parameter(torch.ones(2)); weight.grad = torch.ones(2)\n"
        "group = GroupOptimizer(OptimizerSpec('adam', {'lr': 0.1}), [weight])\n"
        "group.step(0, 1)\n"
        "group.optimizer.load_state_dict(group.optimizer.state_dict())\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", sorted(optimizer_arguments()))
def test_every_optimizer_that_can_be_named_is_made_and_steps(name):
    layer = nn.Linear(3, 2, bias=name != "muon")
    before = layer.weight.detach().clone()
    optimizer = GroupOptimizer(OptimizerSpec(name, {"lr": 0.1}), list(layer.parameters()))
    layer(torch.ones(4, 3)).square().sum().backward()
    optimizer.step(0, 1)
    assert not torch.equal(layer.weight, before) and layer.weight.grad is None
    assert "lr" in optimizer_arguments()[name] and "params" not in optimizer_arguments()[name]


def stepped(spec, gradient, update=0, accumulated=1):
    """Return how far one parameter of value 0 moves under plain SGD-like steps."""
    parameter = nn.Parameter(torch.zeros(len(gradient)))
    parameter.grad = torch.tensor(gradient)
    GroupOptimizer(spec, [parameter]).step(update, accumulated)
    return parameter.detach().tolist()


def test_the_schedule_scales_the_rate_of_each_update():
    schedule = RateSchedule("step", milestones=(3,), gamma=0.5)
    spec = OptimizerSpec("sgd", {"lr": 1.0}, schedule=schedule)
    assert stepped(spec, [1.0], update=2) == [-1.0]
    assert stepped(spec, [1.0], update=3) == [-0.5]


def test_clipping_bounds_the_norm_of_the_whole_group_and_leaves_small_gradients():
    spec = OptimizerSpec("sgd", {"lr": 1.0}, clip=1.0)
    assert stepped(spec, [3.0, 4.0]) == pytest.approx([-0.6, -0.8], abs=1e-5)
    assert stepped(spec, [0.3, 0.4]) == pytest.approx([-0.3, -0.4])


def test_clipping_looks_at_the_average_of_accumulated_gradients():
    spec = OptimizerSpec("sgd", {"lr": 1.0}, clip=1.0)
    assert stepped(spec, [1.6], accumulated=4) == pytest.approx([-0.4])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_accumulated_batches_equal_one_big_batch(name):
    torch.manual_seed(0)
    inputs, targets = torch.randn(24, 3, dtype=torch.float64), torch.randn(24, 2, dtype=torch.float64)
    start = nn.Linear(3, 2, dtype=torch.float64).state_dict()

    def train(parts):
        layer = nn.Linear(3, 2, dtype=torch.float64)
        layer.load_state_dict(start)
        optimizer = GroupOptimizer(OptimizerSpec(name, {"lr": 0.1}), list(layer.parameters()))
        for update in range(3):
            for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
                nn.functional.mse_loss(layer(x), y).backward()
            optimizer.step(update, parts)
        return layer.weight.detach()

    torch.testing.assert_close(train(4), train(1))


def test_a_group_without_trainable_parameters_has_no_optimizer():
    frozen = nn.Linear(2, 2).requires_grad_(False)
    specs = {group: OptimizerSpec("sgd", {"lr": 0.1}) for group in ("body", "heads", "synthesizer")}
    found = group_optimizers(specs, {"body": [nn.Linear(2, 2)], "heads": [frozen], "synthesizer": [nn.ReLU()]})
    assert list(found) == ["body"]


@pytest.mark.parametrize(
    ("name", "arguments", "fragment"),
    [("sgd", {"lr": -1.0}, "-1.0"), ("sgd", {"lr": 0.1, "nesterov": True}, "Nesterov"), ("sgd", {"lr": "fast"}, "fast"),
     ("adam", {"lr": 0.1, "betas": (2.0, 0.9)}, "betas"), ("sgd", {"lr": 0.1, "nothing": 3}, "nothing"),
     ("muon", {"lr": 0.1}, "2D")],
)  # fmt: skip
def test_an_argument_that_torch_refuses_is_a_mistake_of_the_user(name, arguments, fragment):
    with pytest.raises(UserError) as caught:
        GroupOptimizer(OptimizerSpec(name, arguments), [nn.Parameter(torch.zeros(2))])
    message = str(caught.value)
    assert message.startswith(f"optimizer: {name} refuses ") and "\n" not in message and fragment in message


def specs(index=0, *, training=None, **optimizer):
    config = config_from_mapping(
        {
            "data": {"name": "digits"},
            "network": {"name": "mlp", "blocks": 2},
            "optimizer": optimizer,
            "training": training or {"epochs": 3},
        },
        CATALOG,
    )
    wiring = wire([Needs()] * 2, schedule="pipeline")
    facts = {"num_classes": 10, "num_samples": 100, "batches_per_epoch": 10, "num_epochs": 3}
    plan = Plan((("a",), ("b",)), ((1,), (1,)), (Needs(),) * 2, wiring, RawInput((1,)), **facts)
    return optimizer_specs(config, plan, index)


def test_settings_of_a_block_then_of_a_group_go_before_the_common_ones():
    settings = {
        "lr": 0.1, "momentum": 0.9, "clip": 5.0,
        "blocks": {1: {"lr": 0.2, "clip": 2.0}},
        "heads": {"lr": 0.3, "clip": None},
        "synthesizer": {"name": "adam", "lr": 0.4},
    }  # fmt: skip
    first = specs(0, **{**settings, "synthesizer": {"lr": 0.4}})
    assert first["body"].arguments == {"lr": 0.1, "momentum": 0.9} and first["body"].clip == 5.0
    assert first["heads"].arguments == {"lr": 0.3, "momentum": 0.9} and first["heads"].clip is None
    assert first["synthesizer"].arguments == {"lr": 0.4, "momentum": 0.9}
    second = specs(1, **{**settings, "synthesizer": {"lr": 0.4}})
    assert second["body"].arguments["lr"] == 0.2 and second["body"].clip == 2.0
    assert second["heads"].arguments["lr"] == 0.3 and second["heads"].clip is None


def test_a_group_with_another_optimizer_takes_over_the_rate_but_no_other_argument():
    heads = specs(0, lr=0.1, momentum=0.9, weight_decay=0.01, heads={"name": "adam"})["heads"]
    assert (heads.name, dict(heads.arguments)) == ("adam", {"lr": 0.1})
    GroupOptimizer(heads, [nn.Parameter(torch.zeros(2))])


def test_lists_of_the_config_become_the_tuples_that_torch_wants():
    assert specs(name="adam", betas=[0.8, 0.9])["body"].arguments["betas"] == (0.8, 0.9)


def test_epochs_of_the_schedule_become_updates():
    schedule = {"name": "step", "warmup_epochs": 0.5, "milestones": [1, 2.5], "gamma": 0.2}
    found = specs(schedule=schedule)["body"].schedule
    assert found == RateSchedule("step", warmup=5, milestones=(10, 25), gamma=0.2, total=30)
    halved = specs(schedule=schedule, training={"epochs": 3, "accumulate": 4})["heads"].schedule
    assert halved == RateSchedule("step", warmup=1, milestones=(2, 6), gamma=0.2, total=8)
