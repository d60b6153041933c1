"""T03, T05: what direct feedback alignment and direct random target projection follow, and who waits for whom."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu

from actors.errors import UserError
from actors.messages import Kind, Message
from actors.nn.feedback_layers import feedback_layers
from tests.contract.plugin_chain import Chain, chain_config
from tests.runs import block_weights, run

DFA = "direct_feedback_alignment"
HERE = "tests.methods.test_direct_feedback"
RELU = {"name": "mlp", "widths": [10, 9, 8], "blocks": 2}
"""Two blocks: hidden1 and hidden2, hidden3 and output."""


def linear_network(num_classes, input_shape):
    size = torch.Size(input_shape).numel()
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(size, 9)), nn.Linear(9, 7), nn.Linear(7, num_classes)
    )  # fmt: skip


def layers_one_by_one(num_classes, input_shape):
    size = torch.Size(input_shape).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 6), nn.ReLU(), nn.Linear(6, num_classes))


def one_score_too_many(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), num_classes + 1))


def chain_of(rule, *, network=RELU, **sections):
    rule = {"name": rule} if isinstance(rule, str) else rule
    return Chain(chain_config(rule=rule, network=network, **sections))


def gradients_of_batch(chain, batch_id=0):
    """Train on one batch; return every block's gradients at its update, by name."""
    found = {}
    for index, block in enumerate(chain.blocks):

        def update(flags, block=block, index=index, update=block.update):
            found[index] = {name: p.grad.clone() for name, p in block.body.named_parameters()}
            update(flags)

        block.update = update
    chain.train(batch_id, batch_id + 1)
    return [found[index] for index in range(len(chain.blocks))]


def by_hand(parameters, x, credits, *, ends_linear=False):
    """Gradients of linear layers with ReLU between; `credits[l]` at layer l's output, None: exact from above."""
    weights, biases = parameters[::2], parameters[1::2]
    h, inputs, slopes = x.flatten(1), [], []
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        inputs.append(h)
        z = h @ weight.T + bias
        is_linear = ends_linear and index == len(weights) - 1
        slopes.append(torch.ones_like(z) if is_linear else (z > 0).float())
        h = z if is_linear else relu(z)
    gradients, above = [], None
    for weight, h, slope, credit in reversed(list(zip(weights, inputs, slopes, credits, strict=True))):
        delta = (above if credit is None else credit) * slope
        gradients = [delta.T @ h, delta.sum(0), *gradients]
        above = delta @ weight
    return gradients


def parameters_of(block):
    return [p.detach().clone() for p in block.body.parameters()]


def assert_gradients(block, expected):
    for parameter, gradient in zip(block.body.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


def feedback(batch_id, error):
    return Message(Kind.FEEDBACK, batch_id, tensors={"error": error})


def random_error(seed, batch_size=32, num_classes=4):
    return torch.randn(batch_size, num_classes, generator=torch.Generator().manual_seed(seed)) / batch_size


# ---------------------------------------------------------------- what is exact


@pytest.mark.parametrize("rule", [DFA, "drtp"])
def test_the_last_block_follows_the_exact_gradient(rule):
    exact, macro, micro = (
        gradients_of_batch(chain_of(config))
        for config in ("backprop", rule, {"name": rule, "feedback": "micro"})
    )  # fmt: skip
    assert all(torch.equal(macro[1][name], gradient) for name, gradient in exact[1].items())
    exact_in_micro = {name for name, gradient in exact[1].items() if torch.equal(micro[1][name], gradient)}
    assert exact_in_micro == {"layers.1.weight", "layers.1.bias"}, "the network's output layer alone"
    assert not any(torch.equal(macro[0][name], gradient) for name, gradient in exact[0].items())


@pytest.mark.parametrize("rule", [DFA, "drtp"])
def test_one_block_with_macro_feedback_is_backprop(rule):
    one_block = {"name": "mlp", "widths": [12, 12], "batch_norm": True, "blocks": 1}
    chains = [chain_of(name, network=one_block) for name in ("backprop", rule)]
    for chain in chains:
        chain.train(0, 6)
    assert chains[0].digests() == chains[1].digests()
    micro = chain_of({"name": rule, "feedback": "micro"}, network=one_block)
    micro.train(0, 6)
    assert micro.digests()[0][0] != chains[0].digests()[0][0], "inside the block it is no backprop"


def test_with_the_downstream_jacobians_a_linear_network_gets_backprops_gradient():
    network = {"factory": f"{HERE}:linear_network", "blocks": 3}
    chain = chain_of(DFA, network=network)
    first, second, last = chain.blocks
    middle, output = second.body.layers[0].weight, last.body.layers[0].weight
    assert not torch.allclose(first.rule.matrix("0"), output @ middle, rtol=0.1), "they are drawn otherwise"
    with torch.no_grad():
        first.rule.matrix("0").copy_(output @ middle)
        second.rule.matrix("1").copy_(output)
    exact, found = gradients_of_batch(chain_of("backprop", network=network)), gradients_of_batch(chain)
    for block, expected in zip(found, exact, strict=True):
        for name, gradient in expected.items():
            torch.testing.assert_close(block[name], gradient, rtol=1e-5, atol=1e-7)


def test_with_one_hidden_layer_it_is_feedback_alignment():
    own = {
        "network": {"name": "mlp", "widths": [20], "activation": "tanh", "blocks": 2},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    }
    direct, aligned, other = chain_of(DFA, **own), chain_of("feedback_alignment", **own), chain_of("backprop", **own)
    ((_, output),) = feedback_layers(aligned.blocks[1].body)
    output.feedback.matrix = direct.blocks[0].rule.matrix("hidden1").clone()
    for chain in (direct, aligned, other):
        chain.train(0, 9)
    found, expected, exact = ([body for body, _ in chain.digests()] for chain in (direct, aligned, other))
    assert found == expected
    assert found[0] != exact[0], "the matrix matters"


# ---------------------------------------------------------------- what a hidden layer follows


@pytest.mark.parametrize("grain", ["macro", "micro"])
def test_a_hidden_layer_follows_the_projected_error(grain):
    chain = chain_of({"name": DFA, "feedback": grain})
    (lower, upper), x = chain.blocks, chain.message(0, True)
    before = parameters_of(lower), parameters_of(upper)
    up = lower.now(x).up
    sent = upper.now(Message(Kind.ACTIVATION, 0, tensors={**x.tensors, "h": up}))
    error = sent.down[1]["error"]
    lower.later(1, feedback(0, error), 0)
    at = {name: error @ block.rule.matrix(name) for block, name in _projected(lower, upper, grain)}
    assert_gradients(lower, by_hand(before[0], x.tensors["h"], [at.get("hidden1"), at["hidden2"]]))
    assert_gradients(upper, by_hand(before[1], up, [at.get("hidden3"), error], ends_linear=True))


def _projected(lower, upper, grain):
    inner = [(lower, "hidden1"), (upper, "hidden3")] if grain == "micro" else []
    return [*inner, (lower, "hidden2")]


@pytest.mark.parametrize("grain", ["macro", "micro"])
def test_without_an_error_the_labels_alone_are_projected(grain):
    chain = chain_of({"name": "drtp", "feedback": grain})
    (lower, upper), x = chain.blocks, chain.message(0, True)
    before, labels = (parameters_of(lower), parameters_of(upper)), x.tensors["labels"]
    sent = lower.now(x)
    assert sent.complete and not sent.down
    at = {name: -block.rule.matrix(name)[labels] / 32 for block, name in _projected(lower, upper, grain)}
    assert_gradients(lower, by_hand(before[0], x.tensors["h"], [at.get("hidden1"), at["hidden2"]]))
    upper.now(Message(Kind.ACTIVATION, 0, tensors={**x.tensors, "h": sent.up}))
    scores = sent.up @ before[1][0].T + before[1][1]
    scores = (relu(scores) @ before[1][2].T + before[1][3]).requires_grad_()
    (error,) = torch.autograd.grad(cross_entropy(scores, labels), scores)
    assert_gradients(upper, by_hand(before[1], sent.up, [at.get("hidden3"), error], ends_linear=True))


def test_micro_feedback_does_not_depend_on_the_cuts():
    def weights(grain, blocks):
        chain = chain_of({"name": DFA, "feedback": grain}, network={**RELU, "blocks": blocks})
        chain.train(0, 6)
        return {name: digest for body, _ in chain.digests() for name, digest in body.items()}

    assert weights("micro", 1) == weights("micro", 2) == weights("micro", 4) == weights("macro", 4)
    assert weights("macro", 2) != weights("micro", 2)


def test_a_nonlinearity_that_is_a_layer_stays_with_the_weights_before_it():
    chain = chain_of({"name": DFA, "feedback": "micro"}, network={"factory": f"{HERE}:layers_one_by_one", "blocks": 1})
    assert chain.blocks[0].body.severed == ("0", "2"), "in front of the two linear layers"


@pytest.mark.parametrize("late", ["stash", "recompute"])
@pytest.mark.parametrize("grain", ["macro", "micro"])
def test_a_late_error_meets_its_own_batch(grain, late):
    sections = {"rule": {"name": DFA, "feedback": grain}, "schedule": {"delay_per_hop": 2, "late": late}}
    chain, copy = chain_of(**sections), chain_of(**sections)
    block, inputs = chain.blocks[0], [chain.message(batch_id, False) for batch_id in range(3)]
    old = parameters_of(block)
    for message in inputs:
        block.now(message)
    with torch.no_grad():
        for parameter in block.body.parameters():
            parameter.mul_(1.5).add_(0.01)
    copy.restore_from(chain)
    weights = old if late == "stash" else parameters_of(block)
    for batch_id in (0, 1):
        error = random_error(batch_id)
        inner = error @ block.rule.matrix("hidden1") if grain == "micro" else None
        expected = by_hand(weights, inputs[batch_id].tensors["h"], [inner, error @ block.rule.matrix("hidden2")])
        for holder in (block, copy.blocks[0]):
            for parameter in holder.body.parameters():
                parameter.grad = None
            assert holder.later(1, feedback(batch_id, error), batch_id).complete
            assert_gradients(holder, expected)
    assert list(block.open) == [2]


def test_the_scalers_factor_reaches_every_layer_and_no_gradient():
    micro = {"rule": {"name": DFA, "feedback": "micro"}}
    plain = gradients_of_batch(chain_of(**micro))
    mixed = chain_of(**micro, training={"precision": "fp16"})
    assert mixed.blocks[0].precision.factor > 1
    for expected, found in zip(plain, gradients_of_batch(mixed), strict=True):
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() < 0.02 * gradient.norm(), name


# ---------------------------------------------------------------- who waits for whom


def test_the_only_feedback_is_one_error_per_batch_and_block():
    chain, sent = chain_of(DFA, network={**RELU, "blocks": 4}), []
    last = chain.blocks[3]

    def learn(message, learn=last.learn):
        sent.append(learn(message))
        return sent[-1]

    last.learn = learn
    used = chain.train(0, 3)
    assert {edge for edge in used if "feedback" in edge} == {f"block3->block{j}:feedback3" for j in range(3)}
    assert [list(batch.down) for batch in sent] == [[3]] * 3
    assert [{name: t.shape for name, t in batch.down[3].items()} for batch in sent] == [{"error": (32, 4)}] * 3


def test_a_block_is_done_with_a_batch_before_the_blocks_above_it_have_learned_of_it():
    chain = chain_of(DFA, network={**RELU, "blocks": 4})
    message = chain.message(0, False)
    for block in chain.blocks[:3]:
        sent = block.now(message)
        assert not sent.complete
        message = Message(Kind.ACTIVATION, 0, tensors={**message.tensors, "h": sent.up})
    error = chain.blocks[3].now(message).down[3]["error"]
    sent = chain.blocks[0].later(3, feedback(0, error), 0)
    assert sent.complete and not sent.down
    assert all(p.grad is None for block in chain.blocks[1:3] for p in block.body.parameters())


def test_target_projection_has_no_feedback_and_does_not_depend_on_the_blocks_above(tmp_path):
    rule = {"name": "drtp"}
    learns = run(tmp_path / "a", rule=rule)
    rests = run(tmp_path / "b", rule=rule, optimizer={"blocks": {1: {"lr": 0.0}, 2: {"lr": 0.0}}})
    assert [edge["name"] for edge in learns.edges] == ["source->block0", "block0->block1", "block1->block2"]
    assert block_weights(learns)[0] == block_weights(rests)[0]
    assert block_weights(learns)[1] != block_weights(rests)[1]


def test_direct_feedback_does_depend_on_the_blocks_above(tmp_path):
    learns, rests = (
        run(tmp_path / str(lr), rule={"name": DFA}, optimizer={"blocks": {2: {"lr": lr}}}) for lr in (0.05, 0.0)
    )
    assert block_weights(learns)[0] != block_weights(rests)[0]


# ---------------------------------------------------------------- feedback matrices


def test_feedback_matrices_are_uniform_by_layer_and_part_of_the_blocks_state():
    network = {"name": "cnn", "channels": [6, 8, 8], "pool_after": [2], "blocks": 2}
    micro = {"name": DFA, "feedback": "micro"}
    chain, cut = (chain_of(micro, network={**network, "blocks": blocks}) for blocks in (2, 4))
    matrices = [block.rule.matrix(name) for block, name in zip(cut.blocks, ["conv1", "conv2", "conv3"], strict=False)]
    assert [matrix.shape for matrix in matrices] == [(4, 6, 6, 6), (4, 8, 3, 3), (4, 8, 3, 3)]
    assert all(0.45 < matrix.abs().max() <= 0.5 for matrix in matrices), "within 1 / sqrt(4)"
    assert all(matrix.mean().abs() < 0.06 for matrix in matrices)
    assert not torch.equal(matrices[1], matrices[2])
    states = [block.auxiliary_state() for block in chain.blocks]
    assert [list(state) for state in states] == [
        ["rule.feedback:conv1", "rule.feedback:conv2"],
        ["rule.feedback:conv3"],
    ]
    assert torch.equal(states[0]["rule.feedback:conv1"], matrices[0]), "whatever the cuts"
    assert torch.equal(states[1]["rule.feedback:conv3"], matrices[2])
    double = chain_of({**micro, "scale": 2}, network=network).blocks[0].rule.matrix("conv1")
    assert torch.equal(double, 2 * matrices[0])
    before = chain.digests()
    chain.train(0, 2)
    assert [auxiliary for _, auxiliary in chain.digests()] == [auxiliary for _, auxiliary in before], "fixed"


def test_a_network_without_one_score_per_class_is_refused():
    network = {"factory": f"{HERE}:one_score_too_many", "blocks": 2}
    with pytest.raises(UserError, match=r"network: got outputs of shape \(5,\) per sample, expected \(4,\)"):
        chain_of(DFA, network=network)
