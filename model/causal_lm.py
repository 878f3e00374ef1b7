"""Next-token training for pretraining and supervised fine-tuning, and its measure on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from model.llama import Llama
from model.losses import causal_lm_loss
from model.packing import Packed
from model.precision import Precision, autocast
from model.shuffling import Shuffled
from model.training import Optimization

# Logits are made for this many positions at a time: the largest tensors of a step stay in the cache of a CPU and small on a GPU.
CHUNK = 512


class CausalLM(LightningModule):
    """Trains a Llama on packed rows: the loss is the mean over the learned tokens of the batch, whatever rows they are in."""

    def __init__(self, model: Llama, optimization: Optimization) -> None:
        super().__init__()
        self.model, self.optimization = model, optimization

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """`batch` holds tokens, learn and segments, each [b, t] (see `model.packing.Packed`)."""
        loss, learned = next_token_loss(self.model, batch["tokens"], batch["learn"], batch["segments"])
        return {"loss": loss, "tokens": batch["tokens"].numel(), "metrics": {"learned_tokens": learned}}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.optimization.configure(self.model)


class PackedLoader:
    """An endless stream of batches: all rows in an order drawn from the seed, then all rows in another order, and so on.

    A batch may hold the end of one epoch and the beginning of the next, so that every row is seen equally often.
    """

    def __init__(self, packed: Packed, batch_size: int, *, seed: int) -> None:
        if not len(packed):
            raise ValueError("there are no rows to train on")
        self.packed, self.batch_size, self.seed = packed, batch_size, seed

    def steps(self, epochs: float) -> int:
        """Batches in so many passes over the rows, rounded up."""
        return math.ceil(epochs * len(self.packed) / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The stream from batch number `start` on; the batches before it are not built."""
        order = Shuffled(len(self.packed), self.seed, skip=start * self.batch_size)
        while True:
            yield batch_of(self.packed, order.take(self.batch_size))


def batch_of(packed: Packed, rows: np.ndarray | slice) -> dict[str, Tensor]:
    """These rows as tensors: tokens int64, learn bool, segments int32."""
    return {
        "tokens": torch.from_numpy(packed.tokens[rows].astype(np.int64)),
        "learn": torch.from_numpy(packed.learn[rows]),
        "segments": torch.from_numpy(packed.segments[rows]),
    }


def next_token_loss(model: Llama, tokens_bt: Tensor, learn_bt: Tensor, segments_bt: Tensor) -> tuple[Tensor, int]:
    """Mean loss in nats over the learned tokens of the batch, and their number.

    A token that begins a segment is predicted from nothing and never learned. Logits are computed for learned positions only.
    """
    follows_bt = (segments_bt[:, 1:] == segments_bt[:, :-1]) & (segments_bt[:, 1:] > 0)
    learned_bt = learn_bt[:, 1:] & follows_bt
    hidden_nd = model.hidden(tokens_bt, segments_bt=segments_bt)[:, :-1][learned_bt]
    targets_n = tokens_bt[:, 1:][learned_bt]
    learned = len(targets_n)
    if not learned:
        raise ValueError("no token of this batch is learned; look at the data's mask")
    parts = zip(hidden_nd.split(CHUNK), targets_n.split(CHUNK), strict=True)
    return torch.stack([causal_lm_loss(model.logits(h), t) * (len(t) / learned) for h, t in parts]).sum(), learned


@torch.no_grad()
def mean_loss(model: Llama, packed: Packed, *, batch_size: int = 32, precision: Precision = "fp32") -> tuple[float, int]:
    """Mean loss in nats over the learned tokens of all rows, and their number."""
    device = next(model.parameters()).device
    total, learned = 0.0, 0
    for start in range(0, len(packed), batch_size):
        batch = {key: value.to(device) for key, value in batch_of(packed, slice(start, start + batch_size)).items()}
        if not (batch["learn"][:, 1:] & (batch["segments"][:, 1:] == batch["segments"][:, :-1])).any():
            continue
        with autocast(model, precision):
            loss, count = next_token_loss(model, batch["tokens"], batch["learn"], batch["segments"])
        total += float(loss) * count
        learned += count
    if not learned:
        raise ValueError("no token of these rows is learned, so that they have no loss")
    return total / learned, learned


def bits_per_byte(model: Llama, packed: Packed, total_bytes: int, *, batch_size: int = 32, precision: Precision = "fp32") -> float:
    """Bits the model needs for the rows' tokens, the EOS of each document included, over the bytes of the text that they encode."""
    loss, learned = mean_loss(model, packed, batch_size=batch_size, precision=precision)
    return loss * learned / math.log(2) / total_bytes
