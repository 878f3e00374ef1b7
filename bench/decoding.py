"""Sampled tokens a second, prompts of 20 to 40 tokens, 24 new tokens each."""

from collections.abc import Callable

from bench.setting import network, sequences
from model.generation import generate
from model.sampling import SamplingParameters
from resources.sampler import BATCH

NEW_TOKENS = 24


def decode() -> tuple[Callable[[], int], str]:
    """Two batches' worth of requests; no sequence stops early, so that every run does the same work."""
    model, prompts = network(), sequences(2 * BATCH, 20, 40)

    def work() -> int:
        parameters = SamplingParameters(max_new_tokens=NEW_TOKENS)
        completions = generate(model, prompts, parameters, list(range(len(prompts))), eos_id=-1, batch_size=BATCH)
        return sum(len(completion.tokens) for completion in completions)

    return work, "new tokens/s"
