"""The model and the texts that the benchmarks use: the shape of the active profile, random weights, random tokens."""

import numpy as np
import torch

from model.llama import Llama, LlamaConfig
from resources.profiles import active


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def network() -> Llama:
    """A model of the profile's shape."""
    profile = active()
    shape = LlamaConfig(
        vocab_size=profile.vocab_size,
        dim=profile.dim,
        layers=profile.layers,
        heads=profile.heads,
        kv_heads=profile.kv_heads,
        multiple_of=32,
        max_context=profile.max_context,
    )
    model = Llama(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.to(device())


def sequences(count: int, shortest: int, longest: int) -> list[list[int]]:
    """Random token sequences of mixed lengths."""
    chance = np.random.default_rng(0)
    return [[1, *chance.integers(3, active().vocab_size, int(n) - 1).tolist()] for n in chance.integers(shortest, longest + 1, count)]
