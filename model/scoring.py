"""Log-likelihood of given continuations: what multiple-choice tasks are scored by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.branching import length_batches
from model.llama import Llama
from model.reward import pad

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer


@dataclass(frozen=True)
class ContinuationScore:
    """log p(continuation | context) in nats, how many tokens it sums over, and whether each was the likeliest."""

    logprob: float
    tokens: int
    greedy: bool


def continuation_logprobs(model: Llama, pairs: list[tuple[list[int], list[int]]], *, batch_tokens: int = 16384) -> np.ndarray:
    """The log-probabilities of `score_continuations`, float64 [n]."""
    return np.array([score.logprob for score in score_continuations(model, pairs, batch_tokens=batch_tokens)], dtype=np.float64)


@torch.inference_mode()
def score_continuations(model: Llama, pairs: list[tuple[list[int], list[int]]], *, batch_tokens: int = 16384) -> list[ContinuationScore]:
    """A score for each pair of token ids (context, continuation), in the order given.

    A context begins with BOS where the model was trained so. Raises ValueError for an empty side.
    """
    for index, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise ValueError(f"pair {index} has an empty {'context' if not context else 'continuation'}")
    device = next(model.parameters()).device
    scores: dict[int, ContinuationScore] = {}
    whole = [context + continuation for context, continuation in pairs]
    for rows in length_batches([len(tokens) for tokens in whole], batch_tokens):
        tokens_bt, _ = pad([whole[row] for row in rows], device)
        hidden_btd = model.hidden(tokens_bt)
        for place, row in enumerate(rows):
            start, end = len(pairs[row][0]), len(whole[row])
            logits_nv = model.logits(hidden_btd[place, start - 1 : end - 1])
            targets_n1 = tokens_bt[place, start:end, None]
            chosen_n = torch.log_softmax(logits_nv, dim=-1).gather(1, targets_n1)
            greedy = bool((logits_nv.argmax(-1, keepdim=True) == targets_n1).all())
            scores[row] = ContinuationScore(float(chosen_n.double().sum()), end - start, greedy)
    return [scores[row] for row in range(len(pairs))]


def encode_pair(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """(context, continuation) for `score_continuations`: the tokens of both texts joined, cut where they leave the prompt's own.

    A token that reaches over the cut, such as a word with the space that ends the prompt, is the completion's. The context begins with
    BOS where the tokenizer puts one, and with an empty prompt always. Raises ValueError for an empty completion.
    """
    if not completion:
        raise ValueError("the completion is empty; it needs at least one character")
    alone, whole = tokenizer.encode(prompt) if prompt else [], tokenizer.encode(prompt + completion)
    cut = next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole)))
    cut = min(cut, len(whole) - 1)
    begin = [tokenizer.bos_id] if tokenizer.adds_bos or not cut else []
    return begin + whole[:cut], whole[cut:]
