"""Training of the two reward models on comparisons, with the safety model's auxiliary loss (arXiv 2307.09288 §3.2.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from model.losses import MARGINS, RATINGS, ranking_loss, safety_loss
from model.reward import RewardModel, length_batches, pad
from model.training import Optimization


@dataclass(frozen=True)
class Comparison:
    """Two full dialogues (tokens, ending in EOS) that differ in the last answer; whether each answer is unsafe, if known."""

    chosen: list[int]
    rejected: list[int]
    rating: str
    chosen_unsafe: bool | None = None
    rejected_unsafe: bool | None = None

    def __post_init__(self) -> None:
        if self.rating not in RATINGS:
            raise ValueError(f"rating is {self.rating!r}; it must be one of {', '.join(RATINGS)}")


@dataclass(frozen=True)
class Labelled:
    """One full dialogue (tokens, ending in EOS) with its safety label, for the auxiliary loss alone."""

    tokens: list[int]
    unsafe: bool


def reward_optimization(learning_rate: float, steps: int) -> Optimization:
    """The recipe's schedule: cosine to a tenth over `steps` updates, warm-up over 3% of them and at least 5 (if there are so many)."""
    return Optimization(learning_rate=learning_rate, warmup_steps=min(steps, max(5, math.ceil(0.03 * steps))), steps=steps)


class ComparisonLoader:
    """An endless stream of batches of comparisons, epoch after epoch in orders drawn from the seed.

    Labelled dialogues are spread evenly, so that one epoch of comparisons is one epoch of theirs. The rows of a batch are padded in
    groups of like length of about `group_tokens` tokens; which rows make a batch does not depend on their lengths.
    """

    def __init__(
        self,
        comparisons: Sequence[Comparison],
        batch_size: int,
        *,
        seed: int,
        margin: str,
        labelled: Sequence[Labelled] = (),
        group_tokens: int = 2048,
    ) -> None:
        if not comparisons:
            raise ValueError("there are no comparisons to train on")
        if margin not in MARGINS:
            raise ValueError(f"margin is {margin!r}; it must be one of {', '.join(MARGINS)}")
        self.comparisons, self.labelled, self.batch_size = comparisons, labelled, batch_size
        self.seed, self.margin, self.group_tokens = seed, margin, group_tokens

    def steps(self, epochs: float = 1.0) -> int:
        """Batches in so many passes over the comparisons, rounded up."""
        return math.ceil(epochs * len(self.comparisons) / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        pairs = _shuffled(len(self.comparisons), np.random.default_rng([self.seed, 0]))
        singles = _shuffled(len(self.labelled), np.random.default_rng([self.seed, 1]))
        share = len(self.labelled) * self.batch_size / len(self.comparisons)
        step = 0
        while True:
            comparisons = [self.comparisons[next(pairs)] for _ in range(self.batch_size)]
            count = math.floor((step + 1) * share) - math.floor(step * share)
            yield collate(comparisons, [self.labelled[next(singles)] for _ in range(count)], self.margin, self.group_tokens)
            step += 1


def _shuffled(count: int, random: np.random.Generator) -> Iterator[int]:
    while True:
        yield from random.permutation(count).tolist()


def collate(comparisons: Sequence[Comparison], labelled: Sequence[Labelled], margin: str, group_tokens: int) -> dict[str, Any]:
    """A batch whose rows are chosen, rejected, labelled, in this order.

    `groups` [(tokens int64 [b, t], lengths int64 [b])] of like length, `order` int64 [rows] naming the row of each group's line,
    `margins` fp32 [pairs], and for every row `unsafe` fp32 and `has_label` bool.
    """
    rows = [c.chosen for c in comparisons] + [c.rejected for c in comparisons] + [row.tokens for row in labelled]
    labels = [c.chosen_unsafe for c in comparisons] + [c.rejected_unsafe for c in comparisons] + [row.unsafe for row in labelled]
    groups = length_batches([len(row) for row in rows], group_tokens)
    return {
        "groups": [pad([rows[i] for i in group]) for group in groups],
        "order": torch.tensor([i for group in groups for i in group]),
        "margins": torch.tensor([MARGINS[margin][c.rating] for c in comparisons]),
        "unsafe": torch.tensor([float(bool(label)) for label in labels]),
        "has_label": torch.tensor([label is not None for label in labels]),
    }


class RewardTraining(LightningModule):
    """Ranking loss with margins over the pairs, plus `safety_weight` times the safety loss over all rows that have a label.

    The weight, like that loss, is not published: 1 is our choice. 0 leaves the auxiliary loss out, as for the helpfulness model.
    """

    def __init__(self, model: RewardModel, optimization: Optimization, *, safety_weight: float = 0.0) -> None:
        super().__init__()
        self.model, self.optimization, self.safety_weight = model, optimization, safety_weight

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """`batch` as made by `collate`."""
        scores_r = self.scores(batch)
        pairs = len(batch["margins"])
        chosen_b, rejected_b = scores_r[:pairs], scores_r[pairs : 2 * pairs]
        loss = ranking_loss(chosen_b, rejected_b, batch["margins"])
        metrics = {"ranking_loss": loss.detach(), "accuracy": (chosen_b > rejected_b).float().mean()}
        if self.safety_weight and batch["has_label"].any():
            auxiliary = safety_loss(scores_r[batch["has_label"]], batch["unsafe"][batch["has_label"]])
            metrics["safety_loss"] = auxiliary.detach()
            loss = loss + self.safety_weight * auxiliary
        return {"loss": loss, "tokens": sum(int(lengths.sum()) for _, lengths in batch["groups"]), "metrics": metrics}

    def scores(self, batch: dict[str, Any]) -> Tensor:
        """fp32 scores [rows] of a batch in the order of its rows."""
        grouped_r = torch.cat([self.model(tokens_bt, lengths_b) for tokens_bt, lengths_b in batch["groups"]])
        return grouped_r[torch.argsort(batch["order"])]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.optimization.configure(self.model)
