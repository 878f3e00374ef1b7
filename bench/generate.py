"""Sampling beside transformers' `generate`: `python -m bench.generate [contender ...]`.

The same weights (6.9 M parameters, `bench.stopping`), 512 prompts of 16 to 48 tokens, temperature 1 without truncation, up to 64 new
tokens, answers of mixed length; and one sequence alone, 128 tokens. Counted are the tokens of the answers up to their EOS. transformers
gets what its users would do for speed: prompts sorted by length, left-padded, in the better of two batch sizes, with either cache.
"""

from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch

from bench.contest import contest
from bench.stopping import EOS, NEW_TOKENS, network, prompts, transformers_network
from model.memory import keep_freed_memory
from model.precision import Precision

COUNT, ALONE = 512, 128


def tampu(precision: Precision) -> dict[str, float]:
    from model.generation import generate
    from model.sampling import SamplingParameters
    from resources.sampler import BATCH

    keep_freed_memory()
    model, asked = network(), prompts(COUNT)

    def batch(count: int) -> int:
        completions = generate(
            model, asked[:count], SamplingParameters(max_new_tokens=NEW_TOKENS), range(count), eos_id=EOS, batch_size=BATCH, precision=precision
        )
        return sum(len(completion.tokens) for completion in completions)

    def alone() -> int:
        return len(generate(model, asked[:1], SamplingParameters(max_new_tokens=ALONE), [0], eos_id=-1, precision=precision)[0].tokens)

    return _rates(lambda: batch(32), lambda: batch(COUNT), alone)


def transformers(dtype: torch.dtype, batch_size: int, cache: str | None = None) -> dict[str, float]:
    from transformers import GenerationConfig

    model = transformers_network(network()).to(dtype)
    model.generation_config.eos_token_id = model.config.eos_token_id = None  # given with each call
    asked = sorted(prompts(COUNT), key=len, reverse=True)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0, "cache_implementation": cache}

    def some(rows: list[list[int]], new_tokens: int, eos: int | None) -> int:
        longest = max(map(len, rows))
        tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        config = GenerationConfig(max_new_tokens=new_tokens, eos_token_id=eos, **settings)
        out = model.generate(tokens, attention_mask=(tokens != 0).long(), generation_config=config)[:, longest:]
        ended = (out == EOS).int().cumsum(1)
        return int(((ended == 0) | ((ended == 1) & (out == EOS))).sum()) if eos is not None else out.numel()

    def batch(count: int) -> int:
        return sum(some(asked[start : start + batch_size], NEW_TOKENS, EOS) for start in range(0, count, batch_size))

    with torch.inference_mode():
        return _rates(lambda: batch(batch_size), lambda: batch(COUNT), lambda: some(asked[:1], ALONE, None))


def _rates(warm_up: Callable[[], int], batch: Callable[[], int], alone: Callable[[], int]) -> dict[str, float]:
    torch.manual_seed(0)
    warm_up()
    figures = {}
    for name, work in (("512 requests (tokens/s)", batch), ("one alone (tokens/s)", alone)):
        began = perf_counter()
        tokens = work()
        figures[name] = tokens / (perf_counter() - began)
        figures[name.replace("tokens/s", "tokens")] = float(tokens)
    return figures


CONTENDERS = {
    "tampu, fp32": partial(tampu, "fp32"),
    "tampu, bf16": partial(tampu, "bf16"),
    "transformers, fp32, batches of 512": partial(transformers, torch.float32, 512),
    "transformers, fp32, batches of 128": partial(transformers, torch.float32, 128),
    "transformers, fp32, batches of 128, static cache": partial(transformers, torch.float32, 128, "static"),
    "transformers, bf16, batches of 512": partial(transformers, torch.bfloat16, 512),
    "transformers, bf16, batches of 128": partial(transformers, torch.bfloat16, 128),
}

if __name__ == "__main__":
    contest("bench.generate", CONTENDERS, ("transformers",), runs=3, description=__doc__)
