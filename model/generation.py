"""Sampling answers: incremental decoding with a key/value cache, many requests of different lengths at a time.

Noise is a pure function of a request's seed and the index of the token, so that an answer depends on its own prompt, parameters and
seed, and on its batch companions only as far as a float sum does (a matrix product may round differently in another batch). Its
log-probabilities then differ by less than `TOLERANCE`, and its tokens only where a choice is nearer than that to a border between two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.detokenizing import Decode, Detokenizer
from model.llama import KeyValueCache, Llama
from model.precision import Precision, autocast
from model.reward import pad
from model.sampling import SamplingParameters, choose, signed, uniform

PREFILL_TOKENS = 4096  # prompts are read in groups of at most this many padded tokens, which stay in the cache of a CPU
REFILL_SHARE = 8  # new requests enter when an eighth of the rows is free: reading prompts in groups is cheaper than one by one


# Log-probabilities (nats) of the same tokens in another batch, or computed by a full pass instead of step by step, differ by no more.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.25}


@dataclass(frozen=True)
class Completion:
    """An answer, token by token: ids (with the EOS if that ended it), log-probabilities and normalizers (nats).

    Both are of the model's own distribution, untempered, unpenalized and untruncated: a token's logit is its log-probability plus its
    normalizer, log Σ_v exp(logit_v). `ended` says by what: the EOS, a stop string (whose tokens are there), or the limit on tokens or
    the model's context.
    """

    tokens: list[int]
    logprobs: list[float]
    normalizers: list[float]
    ended: Literal["eos", "stop", "limit"]

    @property
    def finished(self) -> bool:
        """Whether the answer ended by itself."""
        return self.ended != "limit"


@torch.inference_mode()
def generate(
    model: Llama,
    prompts: Sequence[list[int]],
    parameters: SamplingParameters | Sequence[SamplingParameters],
    seeds: Sequence[int],
    *,
    eos_id: int,
    batch_size: int = 256,
    precision: Precision = "fp32",
    decode: Decode | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Answer every prompt; results in the order of the prompts.

    Up to `batch_size` rows decode together; a finished row's place goes to the next prompt. `decode` gives the text of tokens, for stop
    strings. `on_progress(done, total)` is called as requests finish. Raises ValueError for an empty prompt, one that leaves no room in
    the model's context, lists that do not match, and stop strings without `decode`.
    """
    if isinstance(parameters, SamplingParameters):
        parameters = [parameters] * len(prompts)
    if not len(prompts) == len(parameters) == len(seeds):
        raise ValueError(f"{len(prompts)} prompts, {len(parameters)} parameters and {len(seeds)} seeds: one of each is needed a request")
    if not prompts:
        return []
    requests = _Requests(model, prompts, parameters, seeds, eos_id, decode)
    waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))  # the longest are popped first
    rows = _Rows(model, requests, min(batch_size, len(prompts)))
    reported = 0
    with autocast(model, precision):
        while waiting or rows.busy():
            free = rows.free()
            if waiting and len(free) * REFILL_SHARE >= len(rows):
                rows.admit(waiting, free)
            elif not waiting and len(free) * 4 >= len(rows):
                rows.drop(free)
            rows.step()
            done = len(prompts) - len(waiting) - rows.busy()
            if on_progress is not None and done > reported:
                on_progress(done, len(prompts))
                reported = done
    return requests.completions()


def stream(
    model: Llama,
    prompt: list[int],
    parameters: SamplingParameters,
    seed: int,
    *,
    eos_id: int,
    precision: Precision = "fp32",
    decode: Decode | None = None,
) -> Iterator[int]:
    """The tokens of one answer as they are sampled, the EOS included: the same that `generate` gives for this request alone."""
    with torch.inference_mode(), autocast(model, precision):
        requests = _Requests(model, [prompt], [parameters], [seed], eos_id, decode)
        rows = _Rows(model, requests, 1)
        rows.admit([0], [0])
    while True:
        yield int(requests.tokens[0, int(requests.counts[0]) - 1])
        if not rows.busy():
            return
        with torch.inference_mode(), autocast(model, precision):
            rows.step()


class _Requests:
    """What was asked and what has been answered so far, one entry a request (n of them), on the model's device."""

    def __init__(
        self,
        model: Llama,
        prompts: Sequence[list[int]],
        parameters: Sequence[SamplingParameters],
        seeds: Sequence[int],
        eos_id: int,
        decode: Decode | None,
    ) -> None:
        context = model.config.max_context
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) < context:
                raise ValueError(f"prompt {index} has {len(prompt)} tokens; the model's context of {context} takes 1 to {context - 1}")
        if decode is None and any(p.stop for p in parameters):
            raise ValueError("stop strings lie in the text, not in the tokens: pass `decode` with them")
        device = next(model.parameters()).device
        self.prompts, self.eos_id, self.device = prompts, eos_id, device
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        asked = torch.tensor([p.max_new_tokens for p in parameters], device=device)
        self.limits = torch.minimum(asked, context - self.lengths)
        self.capacity = int((self.lengths + self.limits).max())
        self.temperature = torch.tensor([p.temperature for p in parameters], device=device)
        self.top_p = torch.tensor([p.top_p for p in parameters], device=device)
        self.top_k = torch.tensor([p.top_k for p in parameters], device=device)
        self.penalty = torch.tensor([p.repetition_penalty for p in parameters], device=device)
        self.truncated = torch.tensor([p.truncated for p in parameters], device=device)
        self.penalized = any(p.repetition_penalty != 1 for p in parameters)
        self.seeds = torch.tensor([signed(seed) for seed in seeds], device=device)
        self.tokens = torch.zeros(len(prompts), int(self.limits.max()), dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(self.tokens.shape, device=device)
        self.normalizers = torch.zeros(self.tokens.shape, device=device)
        self.counts = torch.zeros(len(prompts), dtype=torch.int64, device=device)
        self.ended_by_eos = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self.texts = {i: Detokenizer(decode, p.stop) for i, p in enumerate(parameters) if decode is not None and p.stop}

    def sample(self, requests_b: Tensor, logits_bv: Tensor, seen_bv: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sample the next token of these requests; returns the tokens int64 [b] and whether each request is now done, bool [b]."""
        counts_b = self.counts[requests_b]
        logprobs_bv = torch.log_softmax(logits_bv, dim=-1)
        if seen_bv is None:
            weighed_bv = logprobs_bv
        else:
            penalty_b1 = self.penalty[requests_b, None]
            weighed_bv = torch.where(seen_bv, torch.where(logits_bv > 0, logits_bv / penalty_b1, logits_bv * penalty_b1), logits_bv)
        tokens_b = choose(
            weighed_bv,
            uniform(self.seeds[requests_b], counts_b),
            self.temperature[requests_b],
            self.top_p[requests_b],
            self.top_k[requests_b],
            self.truncated[requests_b],
        )
        chosen_b = logprobs_bv.gather(1, tokens_b[:, None]).squeeze(1)
        self.tokens[requests_b, counts_b] = tokens_b
        self.logprobs[requests_b, counts_b] = chosen_b
        self.normalizers[requests_b, counts_b] = logits_bv.gather(1, tokens_b[:, None]).squeeze(1) - chosen_b
        self.counts[requests_b] = counts_b + 1
        by_eos_b = tokens_b == self.eos_id
        self.ended_by_eos[requests_b] = by_eos_b
        done_b = by_eos_b | (counts_b + 1 >= self.limits[requests_b])
        return tokens_b, done_b | self._stopped(requests_b, tokens_b) if self.texts else done_b

    def _stopped(self, requests_b: Tensor, tokens_b: Tensor) -> Tensor:
        """Whether these tokens complete a stop string, bool [b]."""
        stopped = []
        for request, token in zip(requests_b.tolist(), tokens_b.tolist(), strict=True):
            text = self.texts.get(request)
            if text is not None and token != self.eos_id:
                text.push(token)
            stopped.append(text is not None and text.stopped is not None)
        return torch.tensor(stopped, device=self.device)

    def completions(self) -> list[Completion]:
        columns = (self.tokens, self.logprobs, self.normalizers, self.counts, self.ended_by_eos)
        answers = []
        for index, (tokens, logprobs, normalizers, count, by_eos) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            stopped = index in self.texts and self.texts[index].stopped is not None
            ended: Literal["eos", "stop", "limit"] = "eos" if by_eos else "stop" if stopped else "limit"
            answers.append(Completion(tokens[:count], logprobs[:count], normalizers[:count], ended))
        return answers


class _Rows:
    """The rows that decode together: which request each serves (-1: free), and its last token."""

    def __init__(self, model: Llama, requests: _Requests, count: int) -> None:
        self.model, self.requests = model, requests
        kind = requests.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else next(model.parameters()).dtype
        self.cache = KeyValueCache(model.config, count, requests.capacity, requests.device, dtype)
        self.request = torch.full((count,), -1, device=requests.device)
        self.last = torch.zeros(count, dtype=torch.int64, device=requests.device)
        self.seen = None
        if requests.penalized:
            self.seen = torch.zeros(count, model.config.vocab_size, dtype=torch.bool, device=requests.device)

    def __len__(self) -> int:
        return len(self.request)

    def busy(self) -> int:
        return int((self.request >= 0).sum())

    def free(self) -> list[int]:
        return (self.request < 0).nonzero().flatten().tolist()

    def admit(self, waiting: list[int], free: list[int]) -> None:
        """Pop requests from the end of `waiting` into free rows, read their prompts, and sample their first tokens."""
        free = list(free)
        while waiting and free:
            longest = len(self.requests.prompts[waiting[-1]])
            size = min(len(waiting), len(free), max(1, PREFILL_TOKENS // longest))
            requests = [waiting.pop() for _ in range(size)]
            rows_b = torch.tensor([free.pop() for _ in range(size)], device=self.request.device)
            tokens_bt, lengths_b = pad([self.requests.prompts[i] for i in requests], self.request.device)
            positions_bt = torch.arange(tokens_bt.shape[1], device=tokens_bt.device).expand_as(tokens_bt)
            hidden_btd = self.model.hidden(tokens_bt, positions_bt, cache=self.cache.select(rows_b))
            hidden_bd = hidden_btd[torch.arange(size, device=tokens_bt.device), lengths_b - 1]
            self.request[rows_b] = torch.tensor(requests, device=self.request.device)
            if self.seen is not None:
                self.seen[rows_b] = False
                for row, index in zip(rows_b.tolist(), requests, strict=True):
                    self.seen[row, self.requests.prompts[index]] = True
            self._sample(rows_b, hidden_bd)

    def drop(self, free: list[int]) -> None:
        """Give up free rows: nothing waits for them."""
        kept = torch.ones(len(self), dtype=torch.bool)
        kept[free] = False
        rows = kept.nonzero().flatten().to(self.request.device)
        self.cache.keep(rows)
        self.request, self.last = self.request[rows], self.last[rows]
        self.seen = None if self.seen is None else self.seen[rows]

    def step(self) -> None:
        """One more token for every busy row. Free rows are computed with the rest and ignored."""
        rows_b = (self.request >= 0).nonzero().flatten()
        if not len(rows_b):
            return
        serving = self.request.clamp(min=0)
        positions = self.requests.lengths[serving] + self.requests.counts[serving] - 1
        positions = torch.where(self.request >= 0, positions, 0)
        hidden_btd = self.model.hidden(self.last[:, None], positions[:, None], cache=self.cache.select(None))
        self._sample(rows_b, hidden_btd[rows_b, 0])

    def _sample(self, rows_b: Tensor, hidden_bd: Tensor) -> None:
        seen_bv = None if self.seen is None else self.seen[rows_b]
        tokens_b, done_b = self.requests.sample(self.request[rows_b], self.model.logits(hidden_bd), seen_bv)
        self.last[rows_b] = tokens_b
        if self.seen is not None:
            self.seen[rows_b, tokens_b] = True
        self.request[rows_b[done_b]] = -1
