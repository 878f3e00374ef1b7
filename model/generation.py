"""Sampling answers: incremental decoding with a key/value cache, many requests of different lengths at a time.

Noise is a pure function of a request's seed and the index of the token, so that an answer depends on its own prompt, parameters and
seed, and on its batch companions only as far as a float sum does (a matrix product may round differently in another batch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.llama import KeyValueCache, Llama
from model.precision import Precision, autocast
from model.reward import pad

PREFILL_TOKENS = 16384  # prompts are read in groups of at most this many padded tokens
REFILL_SHARE = 8  # new requests enter when an eighth of the rows is free: reading prompts in groups is cheaper than one by one


@dataclass(frozen=True)
class SamplingParameters:
    """How to sample one request.

    `temperature` 0 is argmax. `top_p` keeps the tokens whose cumulative mass before them is at most it (Meta's rule), after
    `top_k` (0: all). `repetition_penalty` divides positive and multiplies negative logits of tokens already in the prompt or answer
    (CTRL, arXiv 1909.05858). Raises ValueError, naming the field, for a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (argmax) or positive")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all) or positive")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be positive (1: none)")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")

    @property
    def truncated(self) -> bool:
        return self.top_p < 1 or self.top_k > 0


@dataclass(frozen=True)
class Completion:
    """An answer: its tokens (with the EOS if it `finished`), and their log-probabilities (nats) under the model's own distribution,
    untempered and untruncated. Not finished means that the token limit or the model's context came first."""

    tokens: list[int]
    logprobs: list[float]
    finished: bool


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
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Answer every prompt; results in the order of the prompts.

    Up to `batch_size` rows decode together; a finished row's place goes to the next prompt. `on_progress(done, total)` is called as
    requests finish. Raises ValueError for an empty prompt, one that leaves no room in the model's context, or lists that do not match.
    """
    if isinstance(parameters, SamplingParameters):
        parameters = [parameters] * len(prompts)
    if not len(prompts) == len(parameters) == len(seeds):
        raise ValueError(f"{len(prompts)} prompts, {len(parameters)} parameters and {len(seeds)} seeds: one of each is needed a request")
    if not prompts:
        return []
    requests = _Requests(model, prompts, parameters, seeds, eos_id)
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


def stream(model: Llama, prompt: list[int], parameters: SamplingParameters, seed: int, *, eos_id: int) -> Iterator[int]:
    """The tokens of one answer as they are sampled, the EOS included: the same that `generate` gives for this request alone."""
    with torch.inference_mode():
        requests = _Requests(model, [prompt], [parameters], [seed], eos_id)
        rows = _Rows(model, requests, 1)
        rows.admit([0], [0])
    while True:
        yield int(requests.tokens[0, int(requests.counts[0]) - 1])
        if not rows.busy():
            return
        with torch.inference_mode():
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
    ) -> None:
        context = model.config.max_context
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) < context:
                raise ValueError(f"prompt {index} has {len(prompt)} tokens; the model's context of {context} takes 1 to {context - 1}")
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
        self.seeds = torch.tensor([_signed(seed) for seed in seeds], device=device)
        self.tokens = torch.zeros(len(prompts), int(self.limits.max()), dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(self.tokens.shape, device=device)
        self.counts = torch.zeros(len(prompts), dtype=torch.int64, device=device)
        self.finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)

    def sample(self, requests_b: Tensor, logits_bv: Tensor, seen_bv: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sample the next token of these requests; returns the tokens int64 [b] and whether each request is now done, bool [b]."""
        counts_b = self.counts[requests_b]
        logprobs_bv = torch.log_softmax(logits_bv, dim=-1)
        if seen_bv is not None:
            penalty_b1 = self.penalty[requests_b, None]
            punished_bv = torch.where(logits_bv > 0, logits_bv / penalty_b1, logits_bv * penalty_b1)
            logits_bv = torch.where(seen_bv, punished_bv, logits_bv)
        else:
            logits_bv = logprobs_bv
        tokens_b = choose(
            logits_bv,
            uniform(self.seeds[requests_b], counts_b),
            self.temperature[requests_b],
            self.top_p[requests_b],
            self.top_k[requests_b],
            self.truncated[requests_b],
        )
        self.tokens[requests_b, counts_b] = tokens_b
        self.logprobs[requests_b, counts_b] = logprobs_bv.gather(1, tokens_b[:, None]).squeeze(1)
        self.counts[requests_b] = counts_b + 1
        ended_b = tokens_b == self.eos_id
        self.finished[requests_b] = ended_b
        return tokens_b, ended_b | (counts_b + 1 >= self.limits[requests_b])

    def completions(self) -> list[Completion]:
        columns = (self.tokens.tolist(), self.logprobs.tolist(), self.counts.tolist(), self.finished.tolist())
        return [Completion(t[:n], p[:n], finished) for t, p, n, finished in zip(*columns, strict=True)]


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


def choose(logits_bv: Tensor, uniform_b: Tensor, temperature_b: Tensor, top_p_b: Tensor, top_k_b: Tensor, truncated_b: Tensor) -> Tensor:
    """Tokens int64 [b] by inverse transform sampling: the first whose cumulative probability exceeds the row's uniform number.

    Rows with temperature 0 take the argmax. Truncated rows cumulate their kept tokens in order of falling probability, others in
    order of the vocabulary; which of the two a row goes through depends on its own parameters only.
    """
    greedy_b = temperature_b == 0
    probabilities_bv = torch.softmax(logits_bv / torch.where(greedy_b, 1.0, temperature_b)[:, None], dim=-1)
    tokens_b = torch.empty(len(logits_bv), dtype=torch.int64, device=logits_bv.device)
    plain = (~truncated_b & ~greedy_b).nonzero().flatten()
    if len(plain) == len(tokens_b):
        return _invert(probabilities_bv, uniform_b)
    if len(plain):
        tokens_b[plain] = _invert(probabilities_bv[plain], uniform_b[plain])
    cut = (truncated_b & ~greedy_b).nonzero().flatten()
    if len(cut) == len(tokens_b):
        return _choose_truncated(probabilities_bv, uniform_b, top_p_b, top_k_b)
    if len(cut):
        tokens_b[cut] = _choose_truncated(probabilities_bv[cut], uniform_b[cut], top_p_b[cut], top_k_b[cut])
    if bool(greedy_b.any()):
        tokens_b[greedy_b] = logits_bv[greedy_b].argmax(-1)
    return tokens_b


def _choose_truncated(probabilities_bv: Tensor, uniform_b: Tensor, top_p_b: Tensor, top_k_b: Tensor) -> Tensor:
    """As `choose`, for rows with top-p or top-k. Most rows are settled by their 128 likeliest tokens; the rest are sorted in full."""
    vocabulary = probabilities_bv.shape[1]
    tokens_b = torch.empty(len(probabilities_bv), dtype=torch.int64, device=probabilities_bv.device)
    rows_b = torch.arange(len(probabilities_bv), device=probabilities_bv.device)
    for width in (min(128, vocabulary), vocabulary):
        unsettled_bv = probabilities_bv if len(rows_b) == len(probabilities_bv) else probabilities_bv[rows_b]
        sorted_bn, order_bn = unsettled_bv.topk(width, dim=-1)
        mass_bn = sorted_bn.cumsum(-1)
        limit_b = torch.where(top_k_b[rows_b] > 0, top_k_b[rows_b], vocabulary)
        keep_bn = (mass_bn - sorted_bn <= top_p_b[rows_b, None]) & (torch.arange(width, device=rows_b.device) < limit_b[:, None])
        settled_b = (mass_bn[:, -1] > top_p_b[rows_b]) | (limit_b <= width)
        if width == vocabulary:
            settled_b = torch.ones_like(settled_b)
        index_b = _invert(sorted_bn * keep_bn, uniform_b[rows_b])
        tokens_b[rows_b[settled_b]] = order_bn.gather(1, index_b[:, None]).squeeze(1)[settled_b]
        rows_b = rows_b[~settled_b]
        if not len(rows_b):
            break
    return tokens_b


def _invert(weights_bn: Tensor, uniform_b: Tensor) -> Tensor:
    """The index [b] at which the cumulative weight first exceeds `uniform` of the total; never one of weight 0."""
    mass_bn = weights_bn.cumsum(-1)
    total_b = mass_bn[:, -1]
    target_b = torch.minimum(uniform_b * total_b, torch.nextafter(total_b, torch.zeros_like(total_b)))
    return torch.searchsorted(mass_bn, target_b[:, None], right=True).squeeze(1)


def uniform(seeds_b: Tensor, counters_b: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) fp32 [b], a pure function of seed and counter (int64 [b]).

    Two rounds of the SplitMix64 finalizer (Steele, Lea and Flood 2014), the top 24 bits of the result; int64 products wrap.
    """
    mixed = _mix(_mix(seeds_b) + counters_b * _signed(0x9E3779B97F4A7C15))
    return ((mixed >> 40) & 0xFFFFFF).float() / 2**24


def _mix(x: Tensor) -> Tensor:
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (2**33 - 1))


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of `value`."""
    return (int(value) + 2**63) % 2**64 - 2**63
