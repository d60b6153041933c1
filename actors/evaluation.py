"""Evaluates a block in passing: one batch at a time, with the weights of the position that asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from actors.learning_rule import Batch, LearningRule
from actors.messages import Flags, Message
from actors.objective import Objective

VOTES = "votes"
"""Tensor on an evaluation batch: the votes of the blocks below, [B, num_classes]; unless their rule has
votes of its own, weighted class probabilities."""


@dataclass(frozen=True)
class Evaluation:
    """Sums over one split at a position: `num_samples` and what the objective counts.

    `at_s`: when it was done, in seconds since the block began to run.
    """

    split: str
    batch_id: int
    sums: Mapping[str, float]
    at_s: float = 0.0


@dataclass
class Parts:
    """The modules that an evaluation runs through."""

    body: nn.Module
    rule: LearningRule
    objective: Objective | None

    def all(self) -> list[nn.Module]:
        """Return those that are there."""
        return [m for m in (self.body, self.rule, self.objective) if m is not None]


@dataclass
class Evaluator:
    """Runs evaluation batches and adds up what they give.

    `index`: the block's place in the chain, which weighs its vote (2^index: Belilovsky et al. 2019, 1812.11446).
    """

    parts: Parts
    index: int
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def run(self, message: Message, tensors: Mapping[str, Tensor], version: int) -> dict[str, Tensor]:
        """Run one batch; return what the next block gets: `h` [B, ...], and the votes so far."""
        parts = self.parts
        training = [module.training for module in parts.all()]
        for module in parts.all():
            module.eval()
        with torch.no_grad():
            h = parts.body(parts.rule.enter_evaluation(tensors["h"])).float()
            votes = self._votes(parts, h, tensors.get(VOTES))
            if parts.objective is not None:
                self._count(parts.objective, h, Batch(message.batch_id, version, tensors), votes)
            up = {"h": parts.rule.leave(h)}
        for module, was in zip(parts.all(), training, strict=True):
            module.train(was)
        return up if votes is None else {**up, VOTES: votes}

    def result(self, message: Message) -> Evaluation | None:
        """Return the sums after a split's last batch, None before."""
        if not message.flags & Flags.SPLIT_END:
            return None
        totals = {name: float(value) for name, value in self._sums.items()}
        self._sums = {}
        return Evaluation(message.split, message.batch_id, totals)

    def _votes(self, parts: Parts, h: Tensor, below: Tensor | None) -> Tensor | None:
        own = parts.rule.vote(h)
        if own is None:
            scores = parts.objective.scores(h) if parts.objective is not None else None
            own = None if scores is None else scores.float().softmax(dim=1) * 2.0**self.index
        if own is None:
            return below
        return own if below is None else below + own

    def _count(self, objective: Objective, h: Tensor, batch: Batch, votes: Tensor | None) -> None:
        sums = objective.evaluate(h, batch)
        sums["num_samples"] = torch.tensor(float(len(batch.labels) if "labels" in batch.fields else h.shape[0]))
        if votes is not None and "correct" in sums:
            sums["ensemble_correct"] = (votes.argmax(dim=1) == batch.labels).sum()
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, torch.tensor(0.0, dtype=torch.float64)) + value.cpu()
