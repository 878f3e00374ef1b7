"""Tokens a second of a pretraining step: forward, backward, clip, AdamW."""

from collections.abc import Callable

import numpy as np
import torch

from bench.setting import device, network
from model.causal_lm import PackedLoader, next_token_loss
from model.packing import blocks
from model.precision import autocast
from model.training import Optimization
from resources.profiles import active

STEPS = 20


def train() -> tuple[Callable[[], int], str]:
    """A unit of work of `STEPS` steps at the profile's batch and context."""
    profile, model = active(), network()
    stream = np.random.default_rng(0).integers(3, profile.vocab_size, 400_000).astype(np.int32)
    stream[::300] = 1
    batches = iter(PackedLoader(blocks(stream, profile.context), profile.pretraining_batch, seed=0))
    optimizer = Optimization(profile.pretraining_learning_rate, 1, 1000).configure(model)["optimizer"]

    def work() -> int:
        for _ in range(STEPS):
            batch = {name: value.to(device()) for name, value in next(batches).items()}
            with autocast(model, "bf16"):
                loss, _ = next_token_loss(model, batch["tokens"], batch["learn"], batch["segments"])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return STEPS * profile.pretraining_batch * profile.context

    return work, "tokens/s"
