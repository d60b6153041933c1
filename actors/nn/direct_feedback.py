"""Direct feedback: the network's output error reaches every block through a fixed random matrix.

The error e [B, C] of the class scores is the loss's gradient there, or a stand-in for it. What is credited
at an output h [B, *shape] is e B with the feedback matrix B [C, *shape], so that no block needs the layers
above it. Where the matrices stand is the grain (Launay et al. 2020, arXiv:2006.12878): `macro`, at the output
of every block, with exact gradients inside it; `micro`, in front of every layer that has a weight matrix.
The network's last layer always follows the exact error.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from actors.draws import forked_draws
from actors.errors import UserError
from actors.learning_rule import Around, LearningRule, Pass, RuleConfig
from actors.needs import Place
from actors.networks.body import Body
from actors.seeds import seed_of


class DirectFeedbackConfig(RuleConfig):
    """Where the feedback matrices stand, and how large their entries are."""

    feedback: Literal["macro", "micro"] = "macro"
    """macro: at the output of every block, exact inside it; micro: in front of every layer with a weight matrix."""
    scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """A feedback matrix's entries are uniform within scale / sqrt(number of classes); 0: nothing reaches a block."""


class DirectFeedbackRule(LearningRule):
    """Owns a block's feedback matrices and pulls an output error through them; a subclass says which error.

    Raises:
        UserError: the network's output is not one score per class.
    """

    Config: ClassVar[type[DirectFeedbackConfig]] = DirectFeedbackConfig  # type: ignore[assignment]

    def __init__(self, config: RuleConfig, place: Place, around: Around) -> None:
        super().__init__(config, place, around)
        self.num_classes = around.num_classes
        self._around = around
        self._severed: tuple[str, ...] = ()
        self._last_layer = ""
        if place.is_last and around.shape != (around.num_classes,):
            raise UserError(
                f"network: got outputs of shape {around.shape} per sample, expected ({around.num_classes},), a score "
                f"for each class of the data, whose error is sent to all blocks; end the network with as many units"
            )

    @classmethod
    def cut_matters(cls, config: RuleConfig) -> str:
        """The cut decides where matrices stand in for exact gradients, or which block owns them."""
        return "has feedback matrices of its own at every block, in place of gradients from the blocks above"

    def prepare(self, body: nn.Module) -> nn.Module:
        """Draw the block's feedback matrices; each depends on the seed and on its layer's name only."""
        assert isinstance(body, Body)
        assert isinstance(self.config, DirectFeedbackConfig)
        self._last_layer = body.names[-1]
        if self.config.feedback == "micro":
            self._severed = body.severed = _before_weights(body)
        shapes = _output_shapes(body, self._around.body_input_shape)
        if not self.place.is_last:
            shapes[self._last_layer] = self._around.shape
        for name, shape in shapes.items():
            self.register_buffer(_buffer(name), self._draw(seed_of(body.seed, "feedback", name), shape))
        return body

    def matrix(self, layer: str) -> Tensor:
        """Return the feedback matrix [C, *shape] at the output of one of the block's layers."""
        return self.get_buffer(_buffer(layer))

    def follow(self, p: Pass, error: Tensor, exact: Tensor | None = None) -> None:
        """Add the gradients that an output error gives to the block's weights.

        Args:
            p: the batch.
            error: what is projected, [B, C].
            exact: the loss's gradient at the class scores, [B, C]; in the last block only.
        """
        inside = {name: self._project(error, name) for name in self._severed}
        credit = self._project(error, self._last_layer) if exact is None else exact
        p.vjp(credit, weights=True, input=False, inside=inside)

    def _project(self, error: Tensor, layer: str) -> Tensor:
        matrix = self.matrix(layer)
        return (error @ matrix.flatten(1)).view(len(error), *matrix.shape[1:])

    def _draw(self, seed: int, shape: tuple[int, ...]) -> Tensor:
        assert isinstance(self.config, DirectFeedbackConfig)
        half_width = self.config.scale / self.num_classes**0.5
        unit = torch.rand(self.num_classes, *shape, generator=torch.Generator().manual_seed(seed))
        return (2 * unit - 1) * half_width


def _buffer(layer: str) -> str:
    """A buffer's name may hold no dot."""
    return "feedback:" + layer.replace(".", ":")


def _before_weights(body: Body) -> tuple[str, ...]:
    """Return the layers whose successor has a weight matrix: a non-linearity stays with the weights before it."""
    successors = list(body.layers)[1:]
    has_weights = [any(parameter.dim() > 1 for parameter in layer.parameters()) for layer in successors]
    return tuple(name for name, found in zip(body.names, has_weights, strict=False) if found)


def _output_shapes(body: Body, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shape of one output sample of each severed layer; changes nothing."""
    outputs: dict[str, Tensor] = {}
    probe = copy.deepcopy(body).eval()
    with torch.no_grad(), forked_draws():
        probe(torch.zeros(2, *shape), inner=outputs)
    return {name: tuple(output.shape[1:]) for name, output in outputs.items()}
