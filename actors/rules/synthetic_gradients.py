"""Decoupled neural interfaces: synthetic gradients, and synthetic inputs (Jaderberg et al. 2017, 1608.05343).

A block's synthesizer predicts the gradient at the block's output, and the block follows the prediction at
once. What the next block finds as the gradient at its own input, by its own prediction or, at the top, by the
loss, comes later and is what the synthesizer learns (a bootstrapped target). With synthetic inputs a block
also predicts its input from the network's, and the predecessor's activation comes later to teach that model.

A synthesizer works in gradients times the batch size. The loss is a mean over the batch, so its gradient at
one sample shrinks with the batch; a target's scale must not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from actors.learning_rule import Around, Batch, LearningRule, Pass, RuleConfig, Sent
from actors.needs import Driver, Feedback, Needs, Place
from actors.nn.synthesizer import InputModel, Synthesizer, SynthesizerConfig


class SyntheticGradients(LearningRule):
    """Each block follows a prediction of its gradient at once; the gradient itself, late, teaches the prediction."""

    paper = "Jaderberg et al. 2017, arXiv:1608.05343; Czarnecki et al. 2017, arXiv:1703.00522"
    removes_locks = ("update", "backward")

    class Config(LearningRule.Config):
        """What is predicted, from what, by models of which size."""

        conditioned: bool = True
        """Show the labels to the synthesizers (cDNI)."""
        synthetic_inputs: bool = False
        """Drive every block by the network's input, so that it waits for no other block."""
        synthesizer: SynthesizerConfig = SynthesizerConfig()
        """Size of the models of gradients."""
        input_model: SynthesizerConfig = SynthesizerConfig()
        """Size of the models of inputs."""

    def __init__(self, config: RuleConfig, place: Place, around: Around) -> None:
        super().__init__(config, place, around)
        assert isinstance(config, self.Config)
        self.synthesizer: Synthesizer | None = None
        self.input_model: InputModel | None = None
        self.is_conditioned = config.conditioned
        if not place.is_last:
            num_classes = around.num_classes if config.conditioned else None
            self.synthesizer = Synthesizer(config.synthesizer, around.shape, num_classes)
        if config.synthetic_inputs and not place.is_first:
            self.input_model = InputModel(config.input_model, around.raw_shape, around.body_input_shape)

    @classmethod
    def needs(cls, config: RuleConfig, place: Place) -> Needs:
        """All blocks but the last learn from the next block's input gradient; the last has the loss."""
        assert isinstance(config, cls.Config)
        is_driven = config.synthetic_inputs and not place.is_first
        is_conditioned = config.conditioned and not place.is_last
        return Needs(
            feedback=Feedback.NONE if place.is_last else Feedback.NEXT_BLOCK,
            origins=() if place.is_last else (place.index + 1,),
            late_credit=False,
            fields=frozenset({"labels"} if is_conditioned else ()) | ({"raw_input"} if is_driven else set()),
            driver=Driver.RAW_INPUT if is_driven else Driver.PREDECESSOR,
            objective=place.is_last,
        )

    @classmethod
    def locks_removed(cls, config: RuleConfig) -> tuple[str, ...]:
        """Synthetic inputs remove the forward lock as well."""
        assert isinstance(config, cls.Config)
        return ("forward", "update", "backward") if config.synthetic_inputs else cls.removes_locks

    def enter(self, received: Tensor, batch: Batch) -> Tensor:
        """Return the synthetic input [B, ...] where the network's input drives the block."""
        if self.input_model is None:
            return received
        with torch.no_grad():
            return self.input_model(received)

    def now(self, p: Pass, credit: Tensor | None) -> Sent:
        """Follow the synthetic gradient, or the loss at the top; what is found at the input teaches the block below."""
        if self.synthesizer is not None:
            credit = self.predict(p) / p.h.shape[0]
        assert credit is not None, "the last block needs an objective"
        gradient = p.vjp(credit, weights=True, input=not self.place.is_first)
        down = {} if gradient is None else {self.place.index: {"gradient": gradient}}
        return Sent(down=down, complete=True)

    def predict(self, p: Pass) -> Tensor:
        """Return the synthetic gradient at `p.h` times the batch size, [B, ...], without a graph."""
        with torch.no_grad():
            return self._synthesized(p)

    def later(self, p: Pass, origin: int, tensors: Mapping[str, Tensor]) -> Sent:
        """Take the gradient that the next block found at its input as the synthesizer's target."""
        p.kept["gradient"] = tensors["gradient"]
        return self._learn(p)

    def late_activation(self, p: Pass, h: Tensor) -> Sent:
        """Take the predecessor's activation as the input model's target."""
        p.kept["activation"] = h
        return self._learn(p)

    def _learn(self, p: Pass) -> Sent:
        """Regress on the batch's targets once all have come: one optimizer step per batch, whatever the delays."""
        if len(p.answered) < (self.synthesizer is not None) + (self.input_model is not None):
            return Sent()
        if self.synthesizer is not None:
            _squared_error(self._synthesized(p), p.kept["gradient"] * p.h.shape[0]).backward()
        if self.input_model is not None:
            _squared_error(self.input_model(p.batch.raw_input), p.kept["activation"]).backward()
        return Sent(taught=True)

    def _synthesized(self, p: Pass) -> Tensor:
        assert self.synthesizer is not None
        return self.synthesizer(p.h, p.batch.labels if self.is_conditioned else None)


def _squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the squared error, summed over a sample and averaged over the batch: a scalar."""
    return (predicted - target.detach()).square().sum() / predicted.shape[0]
