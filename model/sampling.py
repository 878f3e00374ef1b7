"""Choosing a token from a distribution: the parameters, Meta's truncation rule, and noise that is a function of seed and place.

Shape suffixes: b rows, v vocabulary, n kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParameters:
    """How to sample one request.

    `temperature` 0 is argmax. `top_p` keeps the tokens whose cumulative mass before them is at most it (Meta's rule), after
    `top_k` (0: all). `repetition_penalty` divides positive and multiplies negative logits of tokens already in the prompt or answer
    (CTRL, arXiv 1909.05858). `stop` are texts that end an answer when they appear in it. Raises ValueError, naming the field, for a
    value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()

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
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop is {self.stop!r}; it must be a tuple of texts, none of them empty")

    @property
    def truncated(self) -> bool:
        return self.top_p < 1 or self.top_k > 0


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
    mixed = _mix(_mix(seeds_b) + counters_b * signed(0x9E3779B97F4A7C15))
    return ((mixed >> 40) & 0xFFFFFF).float() / 2**24


def _mix(x: Tensor) -> Tensor:
    x = x + signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (2**33 - 1))


def signed(value: int) -> int:
    """The int64 with the low 64 bits of `value`."""
    return (int(value) + 2**63) % 2**64 - 2**63
