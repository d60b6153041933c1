"""A block that computes nothing and takes known times: the event model's stand-in for `actors.block.Block`.

The learning rule is the real one, on tensors of a few numbers. It decides which passes happen, and every
forward pass, pulled-back credit and update moves the block's clock on by what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from actors.block import Block
from actors.edges import BlockEdges
from actors.evaluation import Evaluator, Parts
from actors.finiteness import Finiteness
from actors.learning_rule import Around, Batch
from actors.messages import Flags, Message
from actors.module_pass import Late, ModulePass
from actors.needs import Needs, Place
from actors.networks.body import Body
from actors.networks.layer import seeded_layer
from actors.networks.network import NetworkSpec
from actors.objective import Objective
from actors.precision import Precision
from actors.spec import BlockSpec, PluginSpec, RawInput

NUM_CLASSES = 4
BATCH_SIZE = 2
RAW_SHAPE, SHAPE = (1, 2, 2), (NUM_CLASSES,)


@dataclass(frozen=True)
class Costs:
    """Seconds that the steps of one block take.

    Args:
        forward: one forward pass through the body.
        backward: pulling a credit back to the input and the weights.
        input_share: part of `backward` that is left if only the input's gradient is asked for.
        weights_share: the same if only the weights' are: all of it but the first layer's input gradient.
        loss: the objective's value and gradient at the output.
        update: an optimizer step.
        synthesizer: an optimizer step of the rule's own parameters, with what leads to it.
    """

    forward: float = 1.0
    backward: float = 2.0
    input_share: float = 0.5
    weights_share: float = 1.0
    loss: float = 0.0
    update: float = 0.0
    synthesizer: float = 0.0


UNIT = Costs()
"""One second forward, two backward."""


class TimedPass:
    """Stands in for `ModulePass`: takes the time that each of its passes would take, and returns zeros.

    Args:
        entered: what the body would run on, [B, ...].
        batch: what travels with it.
        late: what late credit is pulled back through; `recompute` takes a second forward pass.
        shape: of one sample of the body's output.
        costs: of the block.
        spend: moves the block's clock on.
    """

    def __init__(
        self, entered: Tensor, batch: Batch, late: Late, shape: tuple[int, ...], costs: Costs,
        spend: Callable[[float], None],
    ) -> None:  # fmt: skip
        self.entered, self.batch, self.late = entered, batch, late
        self.kept: dict[str, Tensor] = {}
        self.answered: set[int] = set()
        self.is_complete = False
        self._costs, self._spend = costs, spend
        spend(costs.forward)
        self._has_graph = True
        self.h = torch.zeros(len(entered), *shape)

    def settle(self) -> None:
        """Let go of what later calls will make again."""
        if self.late is Late.RECOMPUTE:
            self._has_graph = False

    def vjp(
        self, credit: Tensor, *, weights: bool, input: bool, keep: bool = False,
        inside: Mapping[str, Tensor] | None = None,
    ) -> Tensor | None:  # fmt: skip
        """Take the time of a backward pass; see `actors.learning_rule.Pass`."""
        costs = self._costs
        if not self._has_graph:
            self._spend(costs.forward)
        self._has_graph = keep
        share = {(True, True): 1.0, (True, False): costs.weights_share, (False, True): costs.input_share}
        self._spend(costs.backward * share.get((weights, input), 0.0))
        return torch.zeros_like(self.entered) if input else None


class TimedBlock(Block):
    """A block of one small linear layer whose steps take the given times.

    Args:
        spec: from `timed_spec`.
        costs: of its steps.
        spend: moves the block's clock on.
    """

    def __init__(self, spec: BlockSpec, costs: Costs, spend: Callable[[float], None]) -> None:
        # Not Block.__init__, which builds what computes; every attribute that the methods below it read is here.
        self.spec = spec
        self.place = Place(spec.index, spec.num_blocks)
        self.device = torch.device("cpu")
        self.precision = Precision("fp32", "cpu")
        self.version = self.updates = self.head_updates = self.synthesizer_updates = 0
        self.loss = None
        self.open: dict[int, ModulePass] = {}
        self.finiteness = Finiteness(spec.index, is_skipping=True)
        self.accumulated = {"weights": 0, "heads": 0, "synthesizer": 0}
        self.optimizers = {}
        self._costs, self._spend = costs, spend
        body_input = RAW_SHAPE if self.place.is_first else SHAPE
        self._around = Around(SHAPE, NUM_CLASSES, body_input, RAW_SHAPE)
        self.rule = self._build_rule()
        self.body = cast(Body, self.rule.prepare(_small_body(spec.layers[0])))
        _, config = self._plugin("objective", spec.objective)
        self.objective = Objective(config, self.place, self._around) if self.needs.objective else None
        self.evaluator = Evaluator(Parts(self.body, self.rule, self.objective), spec.index)

    def make_pass(self, received: Tensor, batch: Batch) -> ModulePass:
        """Take the time of a forward pass."""
        entered = self.rule.enter(received, batch)
        return cast(ModulePass, TimedPass(entered, batch, self.late, SHAPE, self._costs, self._spend))

    def forward_frozen(self, message: Message) -> Tensor:
        """Take the time of a forward pass; return zeros [B, *SHAPE]."""
        self._spend(self._costs.forward)
        return torch.zeros(len(message.tensors["h"]), *SHAPE)

    def _credit(self, p: ModulePass) -> Tensor:
        self._spend(self._costs.loss)
        return torch.zeros_like(p.h)

    def _step(self, group: str, count: str, updates: int, flags: Flags) -> bool:
        is_step = super()._step(group, count, updates, flags)
        if is_step and group != "heads":  # their step is part of the body's
            self._spend(self._costs.synthesizer if count == "synthesizer" else self._costs.update)
            self.rule.zero_grad()
        return is_step


def timed_spec(
    place: Place, edges: BlockEdges, needs: Needs, rule: PluginSpec, objective: PluginSpec, *, late: str
) -> BlockSpec:
    """Return the spec of a block that only takes time."""
    spec = BlockSpec(
        run="event-model", name=f"block{place.index}", index=place.index, num_blocks=place.num_blocks, seed=0,
        layers=(f"layer{place.index}",), network=NetworkSpec(), raw=RawInput(RAW_SHAPE), num_classes=NUM_CLASSES,
        rule=rule, objective=objective, optimizers={}, edges=edges,
    )  # fmt: skip
    return replace(spec, fields=needs.fields, late=late)


def _small_body(name: str) -> Body:
    """One linear layer, for rules that swap layers or look at their shapes."""
    layer = seeded_layer(name, lambda: nn.Sequential(nn.Flatten(), nn.Linear(NUM_CLASSES, NUM_CLASSES)), seed=0)
    return Body([layer], seed=0)
