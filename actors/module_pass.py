"""One batch in one block: the forward pass now, credit pulled back through it now or later.

`kept`       the graph of the forward pass over the block's own weights; exact while they don't change.
`stash`      the weights of the forward pass are copied and the graph goes through the copy, so that late
             credit meets the weights that made the activation (PipeDream, Narayanan et al. 2019).
`recompute`  late credit meets a second forward pass with the weights of its own day and the random draws
             of the first (Features Replay, Huo et al. 2018, 1807.04511).

Running statistics count a batch once: a second pass works on copies of the buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from enum import Enum

from torch import Tensor
from torch.func import functional_call

from actors.draws import forked_draws
from actors.learning_rule import Batch
from actors.networks.body import Body
from actors.precision import Precision, accumulate


class Late(Enum):
    """What late credit is pulled back through."""

    KEPT = "kept"
    STASH = "stash"
    RECOMPUTE = "recompute"


class ModulePass:
    """See `actors.learning_rule.Pass`.

    Args:
        body: the block's module.
        entered: what the body runs on, [B, ...]; never written to.
        batch: what travels with it.
        late: what late credit is pulled back through.
        input_gradient: whether the gradient at the input will be asked for.
        precision: how the block computes.
    """

    def __init__(
        self, body: Body, entered: Tensor, batch: Batch, *, late: Late, input_gradient: bool, precision: Precision
    ) -> None:
        self._prepare(body, entered, batch, late, input_gradient, precision)
        if late is Late.STASH:
            self.stashed = {name: p.detach().clone().requires_grad_() for name, p in self._parameters.items()}
        self._output = self._forward(self.stashed)
        self.h = self._output.detach().float() if precision.dtype else self._output.detach()

    @classmethod
    def reopened(
        cls, body: Body, entered: Tensor, batch: Batch, *, late: Late, input_gradient: bool, precision: Precision,
        stashed: Mapping[str, Tensor], h: Tensor, kept: Mapping[str, Tensor], answered: set[int], is_complete: bool,
    ) -> ModulePass:  # fmt: skip
        """Return a pass that a snapshot held; its graph is made again when late credit asks for it."""
        self = cls.__new__(cls)
        self._prepare(body, entered, batch, late, input_gradient, precision)
        self.stashed = {name: weight.detach().clone().requires_grad_() for name, weight in stashed.items()}
        self.h, self.kept, self.answered, self.is_complete = h, dict(kept), answered, is_complete
        return self

    def _prepare(
        self, body: Body, entered: Tensor, batch: Batch, late: Late, input_gradient: bool, precision: Precision
    ) -> None:
        self.batch, self.late = batch, late
        self.entered = entered.detach().requires_grad_() if input_gradient else entered
        self.stashed: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.answered: set[int] = set()
        self.is_complete = False
        self._body, self._precision = body, precision
        self._parameters = body.trainable
        self._output: Tensor | None = None
        self._inner: dict[str, Tensor] = {}

    def settle(self) -> None:
        """Let go of what later calls will make again; the block calls it after every call of the rule."""
        if self.late is Late.RECOMPUTE:
            self._output, self._inner = None, {}

    def vjp(
        self, credit: Tensor, *, weights: bool, input: bool, keep: bool = False,
        inside: Mapping[str, Tensor] | None = None,
    ) -> Tensor | None:  # fmt: skip
        """Pull `credit` back through the body; see `actors.learning_rule.Pass`."""
        output = self._again() if self._output is None else self._output
        given = [(output, credit), *((self._inner[name], own) for name, own in (inside or {}).items())]
        given = [(out, own) for out, own in given if out.requires_grad]
        if not keep:
            self._output, self._inner = None, {}
        else:
            self._output = output
        if not given or not (weights or input):
            return None  # no parameters below
        parameters = list(self._parameters.values()) if weights else []
        through = list(self.stashed.values()) if weights and self.stashed else parameters
        targets: list[Tensor] = [*through, *([self.entered] if input else [])]
        if not targets:
            return None
        outputs, credits = [out for out, _ in given], [own for _, own in given]
        gradients = self._precision.gradients(outputs, targets, credits, keep=keep)
        accumulate(parameters, gradients[: len(parameters)])
        return gradients[-1] if input else None

    def _forward(self, weights: dict[str, Tensor]) -> Tensor:
        arguments = (self.entered, self.batch.batch_id, self._inner)
        with self._precision.autocast():
            if not weights:
                return self._body(*arguments)
            return functional_call(self._body, weights, arguments)

    def _again(self) -> Tensor:
        """Run the forward pass once more, without counting the batch again."""
        buffers = {name: buffer.clone() for name, buffer in self._body.named_buffers()}
        with forked_draws() if self._body.may_draw else nullcontext():
            return self._forward({**self.stashed, **buffers})
