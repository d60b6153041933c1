"""A block: its part of the network, its rule and objective, its optimizers and its random draws.

Torch only: no edges, no threads, no Ray. `program.py` says when each method is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from actors.block_state import read_state, take_state
from actors.compiler import prefer_deterministic
from actors.draws import forked_draws
from actors.errors import MispairedMessage
from actors.evaluation import VOTES, Evaluation, Evaluator, Parts
from actors.finiteness import Finiteness
from actors.learning_rule import Around, Batch, LearningRule, Sent
from actors.messages import Flags, Message
from actors.module_pass import Late, ModulePass
from actors.needs import Feedback, Needs, Place
from actors.networks.body import Body
from actors.networks.network import load_initial_weights, network_layers
from actors.networks.private_input import keep_input_intact
from actors.networks.weights import tensor_digests
from actors.objective import Objective
from actors.optimizers import group_optimizers
from actors.plugins import plugin_class
from actors.precision import Precision, accumulate
from actors.seeds import seed_of
from actors.spec import BlockSpec, PluginSpec


class Block:
    """One block of the chain.

    Args:
        spec: what to build; `spec.layers` are the names of its layers in the network's order.
        shape: shape of one sample of its input, without the batch dimension.
    """

    def __init__(self, spec: BlockSpec, shape: tuple[int, ...]) -> None:
        self.spec = spec
        self.place = Place(spec.index, spec.num_blocks)
        self.device = torch.device(spec.machine.device)
        self.precision = Precision(spec.machine.precision, self.device.type)
        self.version = 0
        self.updates = 0
        self.loss: Tensor | None = None
        self.open: dict[int, ModulePass] = {}
        self.accumulated = {"weights": 0, "heads": 0, "synthesizer": 0}
        self.head_updates = 0
        self.synthesizer_updates = 0
        self.may_compile = False
        """Whether the newest step is the first of its kind and size, for which layers are compiled anew."""
        self._kinds: set[tuple[str, tuple[int, ...]]] = set()
        self.finiteness = Finiteness(spec.index, is_skipping=spec.on_nonfinite == "skip")
        self._apply_machine()
        layers = network_layers(spec.network, spec.raw.shape, spec.num_classes, spec.seed)
        body = Body([layer for layer in layers if layer.name in set(spec.layers)], seed=spec.seed)
        if spec.network.weights:
            load_initial_weights(spec.network.weights, body)
        keep_input_intact(body, shape)
        last = [layer.name for layer in layers].index(spec.layers[-1])
        self._around = Around(
            shape=body.output_shape(shape),
            num_classes=spec.num_classes,
            body_input_shape=shape,
            raw_shape=spec.raw.shape,
            mean=spec.raw.mean,
            std=spec.raw.std,
            later=tuple(layers[last + 1 :]),
        )
        self.rule = self._build_rule()
        self.body = cast(Body, self.rule.prepare(body)).to(self.device)
        self.body.find_draws()
        self.rule.to(self.device)
        self.objective = self._build_objective()
        self._objective_parameters = (
            [q for q in self.objective.parameters() if q.requires_grad] if self.objective else []
        )
        if spec.machine.channels_last:
            self.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if spec.machine.compile:
            self.body.compile_layers()
        self.optimizers = group_optimizers(
            spec.optimizers,
            {
                "body": [self.body],
                "heads": [self.objective] if self.objective is not None else [],
                "synthesizer": [self.rule],
            },
        )
        self.evaluator = Evaluator(Parts(self.body, self.rule, self.objective), spec.index)
        self.train()

    # ------------------------------------------------------------------ building

    def _apply_machine(self) -> None:
        torch.set_num_threads(self.spec.machine.threads)
        prefer_deterministic(self.spec.machine.deterministic, compiles=self.spec.machine.compile)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def _plugin(self, kind: str, spec: PluginSpec) -> tuple[type, Any]:
        found = plugin_class(kind, name=spec.name, factory=spec.factory)
        return found, found.Config(**spec.settings)

    def _build_rule(self) -> LearningRule:
        kind, config = self._plugin("rule", self.spec.rule)
        self.needs: Needs = kind.needs(config, self.place)
        below = Place(self.place.index - 1, self.place.num_blocks)
        self.sends_gradient = not self.place.is_first and kind.needs(config, below).feedback is Feedback.NEXT_BLOCK
        longest = max((late.delay for late in self.spec.edges.late), default=0)
        is_late = longest > 1 or (longest > 0 and self.spec.replay is not None)
        self.late = Late(self.spec.late) if self.needs.late_credit and is_late else Late.KEPT
        with self._initial("rule"):
            return kind(config, self.place, self._around)

    def _build_objective(self) -> Objective | None:
        if not self.needs.objective:
            return None
        kind, config = self._plugin("objective", self.spec.objective)
        with self._initial("objective"):
            objective = kind(config, self.place, self._around)
        return objective.to(self.device)

    @contextmanager
    def _initial(self, purpose: str) -> Iterator[None]:
        """Initial weights of what hangs on a block depend on the seed and the block's last layer only."""
        with forked_draws():
            torch.manual_seed(seed_of(self.spec.seed, purpose, self.spec.layers[-1]))
            yield

    def train(self, mode: bool = True) -> None:
        """Switch body, rule and objective to training mode, or to evaluation mode for good."""
        for module in self.evaluator.parts.all():
            module.train(mode)

    # ------------------------------------------------------------------ training

    def now(self, message: Message, raw: Tensor | None = None) -> Sent:
        """Handle what drives a batch, all at once: `forward`, then `learn`; the activation is `up` of what is sent."""
        up = self.forward(message, raw)
        return replace(self.learn(message), up=up)

    def forward(self, message: Message, raw: Tensor | None = None) -> Tensor:
        """Run the body on what drives a batch; return what the next block gets, [B, ...].

        Args:
            message: its `h` [B, ...] is the block's input, or the raw input if that drives the block.
            raw: the network's input [B, ...], if it came on an edge of its own.
        """
        self._begin("train", message)
        fields = self.on_device({k: v for k, v in message.tensors.items() if k != "h"})
        received = self.on_device({"h": message.tensors["h"]})["h"]
        if "raw_input" in self.spec.fields:
            fields["raw_input"] = received if raw is None else self.on_device({"h": raw})["h"]
        self.finiteness.batch_id = message.batch_id
        with self.finiteness.guarded(self.body.statistics):
            p = self.make_pass(received, Batch(message.batch_id, message.version, fields))
        self.open[message.batch_id] = p
        up = self.rule.leave(p.h)
        self.finiteness.check("the activation", [up])
        return up

    def _begin(self, kind: str, message: Message) -> None:
        """Note whether a step is one for which layers are compiled."""
        if self.spec.machine.compile:
            step = (kind, tuple(message.tensors["h"].shape))
            self.may_compile = step not in self._kinds
            self._kinds.add(step)

    def learn(self, message: Message) -> Sent:
        """After its forward pass: the objective's credit if there is one, the rule's `now`."""
        p = self.open[message.batch_id]
        credit = self._credit(p) if self.objective is not None else None
        sent = self.rule.now(p, credit)
        p.settle()
        if credit is not None and self._step("heads", "heads", self.head_updates, message.flags):
            self.head_updates += 1  # a head's credit is its own loss's and never late
        return self._sent(sent, message.batch_id)

    def make_pass(self, received: Tensor, batch: Batch) -> ModulePass:
        """Run the body on what was received."""
        entered = self.rule.enter(received, batch)
        return ModulePass(
            self.body, entered, batch,
            late=self.late, input_gradient=self.sends_gradient, precision=self.precision,
        )  # fmt: skip

    def later(self, origin: int, message: Message, batch_id: int) -> Sent:
        """Handle feedback from block `origin`, which must be for `batch_id`.

        Raises:
            MispairedMessage: the message is for another batch, or its pass is gone.
        """
        p = self._pass_of(message, batch_id, f"feedback from block {origin}")
        p.answered.add(origin)
        self.finiteness.batch_id = batch_id
        sent = self.rule.later(p, origin, self.on_device(message.tensors))
        p.settle()
        return self._sent(sent, batch_id)

    def late_activation(self, message: Message, batch_id: int) -> Sent:
        """Handle the predecessor's activation of a batch that the raw input has driven.

        Raises:
            MispairedMessage: as `later`.
        """
        p = self._pass_of(message, batch_id, "the predecessor's activation")
        p.answered.add(self.place.index - 1)
        return self._sent(self.rule.late_activation(p, self.on_device(message.tensors)["h"]), batch_id)

    def _pass_of(self, message: Message, batch_id: int, what: str) -> ModulePass:
        p = self.open.get(message.batch_id)
        if message.batch_id != batch_id or p is None:
            raise MispairedMessage(
                f"block {self.spec.index}: {what} is for batch {message.batch_id}, "
                f"expected batch {batch_id}; nothing was trained on it"
            )
        return p

    def forward_frozen(self, message: Message) -> Tensor:
        """Return the activation [B, ...] of a block that has been trained to its end, for a later block to train on."""
        self._begin("frozen", message)
        fields = self.on_device(message.tensors)
        entered = self.rule.enter(fields.pop("h"), Batch(message.batch_id, message.version, fields))
        with torch.no_grad(), self.precision.autocast():
            up = self.rule.leave(self.body(entered)).float()
        self.finiteness.batch_id = message.batch_id
        self.finiteness.check("the activation", [up])
        return up

    def finish_use(self) -> None:
        """Count a finished use of a batch."""
        self.version += 1

    def update(self, flags: Flags) -> None:
        """Count a batch whose last credit has come; step after `accumulate` of them, or at the last."""
        if self._step("body", "weights", self.updates, flags):
            self.updates += 1

    def update_synthesizer(self, flags: Flags) -> None:
        """Count a batch that has taught the rule's own parameters; step as `update` does."""
        if self._step("synthesizer", "synthesizer", self.synthesizer_updates, flags):
            self.synthesizer_updates += 1

    def _step(self, group: str, count: str, updates: int, flags: Flags) -> bool:
        self.accumulated[count] += 1
        if self.accumulated[count] < self.spec.accumulate and not flags & Flags.LAST:
            return False
        accumulated, self.accumulated[count] = self.accumulated[count], 0
        if group in self.optimizers:
            if not self.finiteness.may_step(self.optimizers[group].parameters):
                self.finiteness.num_skipped += group == "body"
                return False
            self.optimizers[group].step(updates, accumulated)
        return True

    def _credit(self, p: ModulePass) -> Tensor:
        assert self.objective is not None
        h = p.h.detach().requires_grad_()
        with self.precision.autocast():
            loss = self.objective(h, p.batch)
        parameters = self._objective_parameters
        gradients = self.precision.gradients_of(loss, [h, *parameters])
        accumulate(parameters, gradients[1:])
        self.loss = loss.detach()
        self.finiteness.check("the loss", [self.loss])
        assert gradients[0] is not None, "the objective's loss does not depend on the block's output"
        return gradients[0]

    def _sent(self, sent: Sent, batch_id: int) -> Sent:
        """Close the pass once its weights have been updated and everything that is due has come."""
        for tensors in sent.down.values():
            self.finiteness.check("feedback", tensors.values())
        p = self.open[batch_id]
        p.is_complete = p.is_complete or sent.complete
        if p.is_complete and len(p.answered) == self._num_late:
            del self.open[batch_id]
        return sent

    @property
    def _num_late(self) -> int:
        edges = self.spec.edges
        return len(edges.late) + (edges.late_activation is not None)

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, message: Message) -> tuple[dict[str, Tensor], Evaluation | None]:
        """Run one evaluation batch; return what goes up and, after a split's last batch, its sums."""
        self._begin("evaluate", message)
        with self.precision.autocast():
            up = self.evaluator.run(message, self.on_device(message.tensors), self.version)
        labels = {name: t for name, t in message.tensors.items() if name not in ("h", VOTES)}
        return {**up, **labels}, self.evaluator.result(message)

    # ------------------------------------------------------------------ state

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every tensor of the body, by its name in the network."""
        return tensor_digests(self.body.named_state())

    def auxiliary_digests(self) -> dict[str, str]:
        """Return the SHA-256 of every tensor of objective, rule and feedback layers."""
        return tensor_digests(self.auxiliary_state())

    def auxiliary_state(self) -> dict[str, Tensor]:
        """Return what is no part of the network, by name."""
        state = {f"feedback.{name}": tensor for name, tensor in self.body.auxiliary_state().items()}
        for kind, module in (("rule", self.rule), ("objective", self.objective)):
            if module is not None:
                state |= {f"{kind}.{name}": tensor for name, tensor in module.state_dict().items()}
        return state

    def snapshot(self) -> dict[str, Any]:
        """Return the block's state at this position, as nested plain values and tensors."""
        return take_state(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `snapshot` made, of a block with the same layers."""
        read_state(self, state)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every parameter of body, rule and objective."""
        for kind, module in (("body", self.body), ("rule", self.rule), ("objective", self.objective)):
            if module is not None:
                for name, parameter in module.named_parameters():
                    yield f"{kind}.{name}", parameter

    def on_device(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors on the block's device, images in its memory format."""
        if self.device.type == "cpu" and not self.spec.machine.channels_last:
            return dict(tensors)
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}
        if self.spec.machine.channels_last:
            for name, tensor in moved.items():
                if tensor.dim() == 4:
                    moved[name] = tensor.contiguous(memory_format=torch.channels_last)
        return moved
