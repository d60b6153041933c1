"""A block: its part of the network, its rule and objective, its optimizers and its random draws.

Torch only: no edges, no threads, no Ray. `program.py` says when each method is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from actors.errors import MispairedMessage, UserError
from actors.learning_rule import Batch, LearningRule, Sent
from actors.messages import Flags, Message
from actors.module_pass import ModulePass
from actors.needs import Feedback, Place
from actors.networks.body import Body
from actors.networks.network import load_initial_weights, network_layers
from actors.networks.private_input import keep_input_intact
from actors.networks.weights import tensor_digests
from actors.objective import Objective
from actors.optimizers import group_optimizers
from actors.plugins import plugin_class
from actors.seeds import seed_of
from actors.spec import BlockSpec, PluginSpec


@dataclass(frozen=True)
class Evaluation:
    """Sums over one split at a position: `num_samples` and what the objective counts."""

    split: str
    batch_id: int
    sums: Mapping[str, float]


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
        self.version = 0
        self.updates = 0
        self.loss: Tensor | None = None
        self._open: dict[int, ModulePass] = {}
        self._accumulated = 0
        self._sums: dict[str, Tensor] = {}
        self._apply_machine()
        layers = network_layers(spec.network, spec.input_shape, spec.num_classes, spec.seed)
        body = Body([layer for layer in layers if layer.name in set(spec.layers)], seed=spec.seed)
        if spec.network.weights:
            load_initial_weights(spec.network.weights, body)
        keep_input_intact(body, shape)
        self.rule = self._build_rule()
        self.body = cast(Body, self.rule.prepare(body)).to(self.device)
        self.rule.to(self.device)
        self.objective = self._build_objective(shape)
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
        self.train()

    # ------------------------------------------------------------------ building

    def _apply_machine(self) -> None:
        torch.set_num_threads(self.spec.machine.threads)
        torch.use_deterministic_algorithms(self.spec.machine.deterministic, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def _plugin(self, kind: str, spec: PluginSpec) -> tuple[type, Any]:
        found = plugin_class(kind, name=spec.name, factory=spec.factory)
        return found, found.Config(**spec.settings)

    def _build_rule(self) -> LearningRule:
        kind, config = self._plugin("rule", self.spec.rule)
        self.needs = kind.needs(config, self.place)
        below = Place(self.place.index - 1, self.place.num_blocks)
        self.sends_gradient = not self.place.is_first and kind.needs(config, below).feedback is Feedback.NEXT_BLOCK
        with self._initial("rule"):
            return kind(config, self.place)

    def _build_objective(self, shape: tuple[int, ...]) -> Objective | None:
        if not self.needs.objective:
            return None
        kind, config = self._plugin("objective", self.spec.objective)
        with self._initial("objective"):
            objective = kind(config, self.place, self.body.output_shape(shape), self.spec.num_classes)
        return objective.to(self.device)

    @contextmanager
    def _initial(self, purpose: str) -> Iterator[None]:
        """Initial weights of what hangs on a block depend on the seed and the block's last layer only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.spec.seed, purpose, self.spec.layers[-1]))
            yield

    def train(self) -> None:
        """Switch body, rule and objective to training mode."""
        for module in self._modules():
            module.train()

    def _modules(self) -> list[nn.Module]:
        return [m for m in (self.body, self.rule, self.objective) if m is not None]

    # ------------------------------------------------------------------ training

    def now(self, message: Message) -> Sent:
        """Handle an activation: forward, the objective's credit if there is one, the rule's `now`."""
        fields = self._to_device({k: v for k, v in message.tensors.items() if k != "h"})
        batch = Batch(message.batch_id, message.version, fields)
        received = self._to_device({"h": message.tensors["h"]})["h"]
        p = ModulePass(
            self.body, received, batch,
            input_gradient=self.sends_gradient, draw=message.batch_id,
        )  # fmt: skip
        self._open[batch.batch_id] = p
        credit = self._credit(p) if self.objective is not None else None
        return self._sent(self.rule.now(p, credit), batch.batch_id)

    def later(self, origin: int, message: Message, batch_id: int) -> Sent:
        """Handle feedback from block `origin`, which must be for `batch_id`.

        Raises:
            MispairedMessage: the message is for another batch, or its pass is gone.
        """
        p = self._open.get(message.batch_id)
        if message.batch_id != batch_id or p is None:
            raise MispairedMessage(
                f"block {self.spec.index}: feedback from block {origin} is for batch {message.batch_id}, "
                f"expected batch {batch_id}; nothing was trained on it"
            )
        return self._sent(self.rule.later(p, origin, self._to_device(message.tensors)), batch_id)

    def finish_use(self) -> None:
        """Count a finished use of a batch."""
        self.version += 1

    def update(self, flags: Flags) -> None:
        """Count a batch whose last credit has come; step after `accumulate` of them, or at the last."""
        self._accumulated += 1
        if self._accumulated < self.spec.accumulate and not flags & Flags.LAST:
            return
        for optimizer in self.optimizers.values():
            optimizer.step(self.updates, self._accumulated)
        self.updates += 1
        self._accumulated = 0

    def _credit(self, p: ModulePass) -> Tensor:
        assert self.objective is not None
        h = p.h.detach().requires_grad_()
        loss = self.objective(h, p.batch)
        loss.backward()
        self.loss = loss.detach()
        assert h.grad is not None, "the objective's loss does not depend on the block's output"
        return h.grad

    def _sent(self, sent: Sent, batch_id: int) -> Sent:
        if sent.complete:
            del self._open[batch_id]
        return sent

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, message: Message) -> tuple[Tensor, Evaluation | None]:
        """Run one evaluation batch; return the activation and, after a split's last batch, its sums."""
        tensors = self._to_device(message.tensors)
        for module in self._modules():
            module.eval()
        with torch.no_grad():
            h = self.body(tensors["h"])
            if self.objective is not None:
                batch = Batch(message.batch_id, self.version, tensors)
                sums = self.objective.evaluate(h, batch)
                sums["num_samples"] = torch.tensor(float(h.shape[0]))
                for name, value in sums.items():
                    self._sums[name] = self._sums.get(name, torch.tensor(0.0, dtype=torch.float64)) + value.cpu()
        self.train()
        if not message.flags & Flags.SPLIT_END:
            return h, None
        totals = {name: float(value) for name, value in self._sums.items()}
        self._sums = {}
        return h, Evaluation(message.split, message.batch_id, totals)

    # ------------------------------------------------------------------ state

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every tensor of the body, by its name in the network."""
        return tensor_digests(self.body.named_state())

    def auxiliary_digests(self) -> dict[str, str]:
        """Return the SHA-256 of every tensor of objective and rule."""
        return tensor_digests(self._auxiliary_state())

    def _auxiliary_state(self) -> dict[str, Tensor]:
        state = {f"rule.{name}": tensor for name, tensor in self.rule.state_dict().items()}
        if self.objective is not None:
            state |= {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        return state

    def snapshot(self) -> dict[str, Any]:
        """Return the block's state at this position, as nested plain values and tensors."""
        if self._open:
            raise UserError(f"block {self.spec.index}: passes of batches {sorted(self._open)} are still open")
        return {
            "version": self.version,
            "updates": self.updates,
            "accumulated": self._accumulated,
            "body": dict(self.body.named_state()),
            "auxiliary": self._auxiliary_state(),
            "gradients": self._gradients(),
            "optimizers": {group: o.optimizer.state_dict() for group, o in self.optimizers.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `snapshot` made, of a block with the same layers."""
        self.version, self.updates = state["version"], state["updates"]
        self._accumulated = state["accumulated"]
        self.body.load_named_state(state["body"])
        for kind, module in (("rule", self.rule), ("objective", self.objective)):
            if module is not None:
                own = {k.removeprefix(f"{kind}."): v for k, v in state["auxiliary"].items() if k.startswith(f"{kind}.")}
                module.load_state_dict(own)
        for group, optimizer in self.optimizers.items():
            optimizer.optimizer.load_state_dict(state["optimizers"][group])
        for name, parameter in self._named_parameters():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)

    def _gradients(self) -> dict[str, Tensor]:
        """Gradients accumulated so far; empty between updates."""
        return {name: p.grad for name, p in self._named_parameters() if p.grad is not None}

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for kind, module in (("body", self.body), ("rule", self.rule), ("objective", self.objective)):
            if module is not None:
                for name, parameter in module.named_parameters():
                    yield f"{kind}.{name}", parameter

    def _to_device(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.device.type == "cpu" and not self.spec.machine.channels_last:
            return dict(tensors)
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}
        if self.spec.machine.channels_last:
            for name, tensor in moved.items():
                if tensor.dim() == 4:
                    moved[name] = tensor.contiguous(memory_format=torch.channels_last)
        return moved
