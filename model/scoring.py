"""Log-likelihood of given continuations: what multiple-choice tasks are scored by."""

from __future__ import annotations

import numpy as np
import torch

from model.branching import length_batches
from model.llama import Llama
from model.reward import pad


@torch.inference_mode()
def continuation_logprobs(model: Llama, pairs: list[tuple[list[int], list[int]]], *, batch_tokens: int = 16384) -> np.ndarray:
    """log p(continuation | context) in nats, float64 [n], for pairs of token ids; neither side may be empty.

    A context begins with BOS where the model was trained so. Raises ValueError for an empty side.
    """
    for index, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise ValueError(f"pair {index} has an empty {'context' if not context else 'continuation'}")
    device = next(model.parameters()).device
    result = np.zeros(len(pairs))
    whole = [context + continuation for context, continuation in pairs]
    for rows in length_batches([len(tokens) for tokens in whole], batch_tokens):
        tokens_bt, _ = pad([whole[row] for row in rows], device)
        hidden_btd = model.hidden(tokens_bt)
        for place, row in enumerate(rows):
            start, end = len(pairs[row][0]), len(whole[row])
            logprobs_nv = torch.log_softmax(model.logits(hidden_btd[place, start - 1 : end - 1]), dim=-1)
            chosen_n = logprobs_nv.gather(1, tokens_bt[place, start:end, None])
            result[row] = float(chosen_n.double().sum())
    return result
