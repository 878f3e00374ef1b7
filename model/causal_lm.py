"""Next-token training for pretraining and supervised fine-tuning, and its measure on held-out text."""

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
from torch.utils.checkpoint import checkpoint

from model.dialogue import Example
from model.flops import flops_per_token
from model.llama import Llama
from model.losses import causal_lm_loss
from model.packing import Packed, Rows, pack
from model.precision import Precision, autocast
from model.ranks import shard
from model.shuffling import Shuffled
from model.training import Optimization

# Logits are made for this many positions at a time: the largest tensors of a step stay in the cache of a CPU and small on a GPU.
CHUNK = 512
# Where all logits of a batch would be more than a chunk's over a vocabulary of 32k (64 MiB in fp32), each chunk's are dropped once its loss
# is known, and made again for its gradient: the same bits, for one more product with the output matrix (our choice).
MOST_LOGITS = CHUNK * 32768


class CausalLM(LightningModule):
    """Trains a Llama on packed rows: the loss is the mean over the learned tokens of the batch, whatever rows they are in."""

    def __init__(self, model: Llama, optimization: Optimization) -> None:
        super().__init__()
        self.model, self.optimization = model, optimization

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """`batch` holds tokens, learn and segments, each [b, t] (see `model.packing.Packed`), and a part what it is a part of.

        A part's loss is its sum over the mean number of learned tokens of all `parts`, so that any split gives the same update.
        """
        tokens_bt = batch["tokens"]
        of, parts = batch.get("learned_in_batch"), batch.get("parts", 1)
        loss, learned = next_token_loss(self.model, tokens_bt, batch["learn"], batch["segments"], of=of)
        return {
            "loss": loss if of is None else loss * parts,
            "tokens": tokens_bt.numel(),
            "metrics": {"learned_tokens": learned if of is None else of},
            "flops": tokens_bt.numel() * flops_per_token(self.model.config, tokens_bt.shape[1]),
        }

    def configure_model(self) -> None:
        """Under FSDP2 each rank keeps its part of the network."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.optimization.configure(self.model)


class PackedLoader:
    """An endless stream of batches: all rows in an order drawn from the seed, then all rows in another order, and so on.

    A batch may hold the end of one epoch and the beginning of the next, so that every row is seen equally often.
    """

    def __init__(self, packed: Rows, batch_size: int, *, seed: int) -> None:
        if not len(packed):
            raise ValueError("there are no rows to train on")
        self.packed, self.batch_size, self.seed = packed, batch_size, seed

    def steps(self, epochs: float) -> int:
        """Batches in so many passes over the rows, rounded up."""
        return math.ceil(epochs * len(self.packed) / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.batches()

    def batches(self, start: int = 0, parts: int = 1) -> Iterator[dict[str, Any]]:
        """The stream from batch number `start` on; the batches before it are not built.

        With `parts` each batch comes as so many, with `learned_in_batch`, the number of tokens learned in all of them, and `parts`.
        Raises ValueError for more parts than rows.
        """
        if parts > self.batch_size:
            raise ValueError(f"a batch of {self.batch_size} rows can not be read in {parts} parts; make it larger or accumulate less")
        order = Shuffled(len(self.packed), self.seed, skip=start * self.batch_size)
        while True:
            rows = order.take(self.batch_size)
            if parts == 1:
                yield batch_of(self.packed, rows)
                continue
            learned = Packed(self.packed.tokens[rows], self.packed.learn[rows], self.packed.segments[rows]).learned()
            for some in np.array_split(rows, parts):
                yield {**batch_of(self.packed, some), "learned_in_batch": learned, "parts": parts}

    def rows(self, batch: int) -> list[int]:
        """Numbers of the packed rows in that batch."""
        return Shuffled(len(self.packed), self.seed, skip=batch * self.batch_size).take(self.batch_size).tolist()


def batch_of(packed: Rows, rows: np.ndarray | slice) -> dict[str, Tensor]:
    """These rows as tensors: tokens int64, learn bool, segments int32."""
    return {
        "tokens": torch.from_numpy(packed.tokens[rows].astype(np.int64)),
        "learn": torch.from_numpy(packed.learn[rows]),
        "segments": torch.from_numpy(packed.segments[rows]),
    }


def next_token_loss(model: Llama, tokens_bt: Tensor, learn_bt: Tensor, segments_bt: Tensor, *, of: int | None = None) -> tuple[Tensor, int]:
    """Mean loss in nats over the learned tokens of the batch, and their number; the sum over `of` tokens where that is given.

    A token that begins a segment is predicted from nothing and never learned. Logits are computed for learned positions only, a chunk at
    a time. Raises ValueError if there are none to learn, here or (`of` 0) in the batch that this is a part of.
    """
    follows_bt = (segments_bt[:, 1:] == segments_bt[:, :-1]) & (segments_bt[:, 1:] > 0)
    learned_bt = learn_bt[:, 1:] & follows_bt
    hidden_nd = model.hidden(tokens_bt, segments_bt=segments_bt)[:, :-1][learned_bt]
    targets_n = tokens_bt[:, 1:][learned_bt]
    learned = len(targets_n)
    total = learned if of is None else of
    if not total:
        raise ValueError("no token of this batch is learned; look at the data's mask")
    if not learned:
        return model.logits(hidden_nd).sum(), 0  # 0, with a gradient of 0 for every weight, which other ranks wait for
    again = learned * model.config.vocab_size > MOST_LOGITS and torch.is_grad_enabled()

    def chunk_loss(hidden_nd: Tensor, targets_n: Tensor) -> Tensor:
        return causal_lm_loss(model.logits(hidden_nd), targets_n)

    losses = []
    for h, t in zip(hidden_nd.split(CHUNK), targets_n.split(CHUNK), strict=True):
        loss = checkpoint(chunk_loss, h, t, use_reentrant=False, preserve_rng_state=False) if again else chunk_loss(h, t)
        losses.append(loss * (len(t) / total))
    return torch.stack(losses).sum(), learned


@torch.no_grad()
def mean_loss(model: Llama, packed: Rows, *, batch_size: int = 32, precision: Precision = "fp32") -> tuple[float, int]:
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


def packed_and_alone(model: Llama, examples: Sequence[Example], context: int) -> tuple[float, float]:
    """Mean loss (nats, fp32) over the learned tokens of the examples: packed into rows of `context` tokens, and each in a row of its own.

    They are equal but for rounding where no example sees another.
    """
    packed, learned = mean_loss(model, pack(examples, context, seed=0))
    alone = 0.0
    for example in examples:
        row = pack([example], len(example.tokens), seed=0)
        if row.learned():
            loss, count = mean_loss(model, row)
            alone += loss * count
    return packed, alone / learned


def bits_per_byte(model: Llama, packed: Rows, total_bytes: int, *, batch_size: int = 32, precision: Precision = "fp32") -> float:
    """Bits the model needs for the rows' tokens, the EOS of each document included, over the bytes of the text that they encode."""
    loss, learned = mean_loss(model, packed, batch_size=batch_size, precision=precision)
    return loss * learned / math.log(2) / total_bytes


@dataclass(frozen=True)
class HeldOut:
    """A validation for `fit`: `bits_per_byte` of the model that is trained."""

    model: Llama
    packed: Rows
    total_bytes: int

    def __call__(self) -> dict[str, float]:
        return {"validation_bits_per_byte": bits_per_byte(self.model, self.packed, self.total_bytes)}
