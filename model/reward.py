"""The reward model: the language model with a scalar regression head in place of the token head (arXiv 2307.09288 §3.2.2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.branching import BranchedRows, share_prefixes
from model.llama import Llama, LlamaConfig, Trunk
from model.precision import Precision, autocast


class RewardModel(nn.Module):
    """A Llama trunk and a bias-free dim→1 head, read at the last token. Its weights are arbitrary until loaded or copied."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.dim, 1, bias=False)

    @classmethod
    def from_llama(cls, llama: Llama) -> RewardModel:
        """A reward model that starts from a chat model's trunk; the head starts at 0, so that all scores are 0 at first (our choice)."""
        model = cls(llama.config).to(next(llama.parameters()).device)
        model.trunk.load_state_dict(llama.trunk.state_dict())
        nn.init.zeros_(model.head.weight)
        return model

    def forward(self, tokens_bt: Tensor, lengths_b: Tensor) -> Tensor:
        """Scores fp32 [b] (raw: the paper's score in [0, 1] is their sigmoid) of right-padded tokens [b, t], read at `lengths_b - 1`.

        The last token is the EOS of the last answer. Padding needs no mask: attention is causal, so that nothing before it reads it.
        """
        last_bd = self.trunk(tokens_bt, read_bm=(lengths_b - 1)[:, None])[:, 0]
        return scalar(self.head, last_bd)

    def branched(self, batch: BranchedRows) -> Tensor:
        """Scores fp32 [n] of the sequences of `batch`, in the order of `batch.sequences`."""
        ends_bm, slots_n = batch.ends()
        ends_bmd = self.trunk(batch.tokens, batch.positions, batch.segments, branches_bt=batch.branches, read_bm=ends_bm)
        return scalar(self.head, ends_bmd[batch.rows, slots_n])


def scalar(head: nn.Linear, states_nd: Tensor) -> Tensor:
    """What a dim→1 head gives for states [n, d]: fp32 [n], computed in fp32 whatever autocast says, since in bf16 close scores tie."""
    with torch.autocast(states_nd.device.type, enabled=False):
        return F.linear(states_nd.float(), head.weight.float()).squeeze(-1)


def pad(sequences: list[list[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Right-padded int64 tokens [b, t] and their lengths int64 [b]. An empty sequence raises ValueError: it has no last token."""
    lengths = np.array([len(sequence) for sequence in sequences])
    if lengths.min(initial=1) < 1:
        raise ValueError(f"sequence {int(lengths.argmin())} is empty; a sequence needs at least one token")
    tokens = np.zeros((len(sequences), int(lengths.max(initial=1))), dtype=np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(tokens).to(device), torch.from_numpy(lengths).to(device)


@torch.inference_mode()
def score(model: RewardModel, sequences: list[list[int]], batch_tokens: int = 16384, *, precision: Precision = "fp32") -> np.ndarray:
    """Raw scores fp32 [n] of full dialogues, in the order given; neighbours that begin alike share their prefix's computation.

    Batches hold like lengths and at most `batch_tokens` padded tokens.
    """
    scores = np.zeros(len(sequences), dtype=np.float32)
    device = next(model.parameters()).device
    for batch in share_prefixes(sequences, batch_tokens):
        with autocast(model, precision):
            scores[batch.sequences.numpy()] = model.branched(batch.to(device)).cpu().numpy()
    return scores
