"""Training of the two reward models on comparisons, with the safety model's auxiliary loss (arXiv 2307.09288 §3.2.2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from model.branching import share_prefixes
from model.flops import flops_per_token
from model.losses import MARGINS, RATINGS, ranking_loss, safety_loss
from model.reward import RewardModel
from model.shuffling import Shuffled
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
        return self.batches()

    def batches(self, start: int = 0, parts: int = 1) -> Iterator[dict[str, Any]]:
        """The stream from batch number `start` on; the batches before it are not built.

        With `parts` each batch comes as so many, with the numbers of all pairs and labels in them, and `parts`. Raises ValueError for
        more parts than pairs.
        """
        if parts > self.batch_size:
            raise ValueError(f"a batch of {self.batch_size} pairs can not be read in {parts} parts; make it larger or accumulate less")
        share = len(self.labelled) * self.batch_size / len(self.comparisons)
        pairs = Shuffled(len(self.comparisons), [self.seed, 0], skip=start * self.batch_size)
        singles = Shuffled(len(self.labelled), [self.seed, 1], skip=math.floor(start * share))
        for step in itertools.count(start):
            count = math.floor((step + 1) * share) - math.floor(step * share)
            comparisons = [self.comparisons[i] for i in pairs.take(self.batch_size)]
            labelled = [self.labelled[i] for i in singles.take(count)]
            if parts == 1:
                yield collate(comparisons, labelled, self.margin, self.group_tokens)
                continue
            labels = [label for c in comparisons for label in (c.chosen_unsafe, c.rejected_unsafe)] + [single.unsafe for single in labelled]
            whole = {"pairs_in_batch": len(comparisons), "labels_in_batch": sum(label is not None for label in labels), "parts": parts}
            for part in range(parts):
                some, more = (items[part * len(items) // parts : (part + 1) * len(items) // parts] for items in (comparisons, labelled))
                yield {**collate(some, more, self.margin, self.group_tokens), **whole}

    def rows(self, batch: int) -> list[int]:
        """Numbers of the comparisons in that batch."""
        return Shuffled(len(self.comparisons), [self.seed, 0], skip=batch * self.batch_size).take(self.batch_size).tolist()


def collate(comparisons: Sequence[Comparison], labelled: Sequence[Labelled], margin: str, group_tokens: int) -> dict[str, Any]:
    """A batch of the sequences chosen, rejected, chosen, rejected, …, labelled, in this order.

    `groups` are `BranchedRows`: a pair's prompt is there once. `margins` fp32 [pairs]; for every sequence `unsafe` fp32
    and `has_label` bool.
    """
    sequences = [tokens for c in comparisons for tokens in (c.chosen, c.rejected)] + [single.tokens for single in labelled]
    labels = [label for c in comparisons for label in (c.chosen_unsafe, c.rejected_unsafe)] + [single.unsafe for single in labelled]
    return {
        "groups": list(share_prefixes(sequences, group_tokens)),
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
        """`batch` as made by `collate`, or by the loader as a part of a batch: then each loss counts by its share of pairs or labels."""
        scores_r = self.scores(batch)
        labelled_r, parts = batch["has_label"], batch.get("parts", 1)
        pairs, labels = len(batch["margins"]), int(labelled_r.sum())
        pairs_weight = parts * pairs / batch.get("pairs_in_batch", pairs)
        chosen_b, rejected_b = scores_r[: 2 * pairs].view(-1, 2).unbind(1)
        loss = ranking_loss(chosen_b, rejected_b, batch["margins"]) * pairs_weight
        metrics = {"ranking_loss": loss.detach(), "accuracy": (chosen_b > rejected_b).float().mean() * pairs_weight}
        if self.safety_weight and (labels_in_batch := batch.get("labels_in_batch", labels)):
            auxiliary = loss.new_zeros(())
            if labels:
                auxiliary = safety_loss(scores_r[labelled_r], batch["unsafe"][labelled_r]) * (parts * labels / labels_in_batch)
            metrics["safety_loss"] = auxiliary.detach()
            loss = loss + self.safety_weight * auxiliary
        tokens = [group.token_count for group in batch["groups"]]
        flops = [
            count * flops_per_token(self.model.config, group.tokens.shape[1], "scalar")
            for count, group in zip(tokens, batch["groups"], strict=True)
        ]
        return {"loss": loss, "tokens": sum(tokens), "metrics": metrics, "flops": sum(flops)}

    def scores(self, batch: dict[str, Any]) -> Tensor:
        """fp32 scores [n] of a batch's sequences in their order."""
        scores_n = torch.cat([self.model.branched(group) for group in batch["groups"]])
        return scores_n[torch.argsort(torch.cat([group.sequences for group in batch["groups"]]))]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.optimization.configure(self.model)
