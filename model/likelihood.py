"""Log-likelihoods of continuations, as evaluation harnesses ask for them: texts that begin alike are read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.branching import length_batches
from model.llama import Llama

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer

# Tokens of a row of several branches (our choice): attention over the other branches grows with the square of the row.
LONGEST_ROW = 512
# Share of the tokens that putting a sequence into the row has to save.
LEAST_SAVING = 0.1
# Logits are made for so many positions at a time, so that a large vocabulary does not fill the memory.
CHUNK = 1024


@torch.inference_mode()
def loglikelihoods(model: Llama, pairs: list[tuple[list[int], list[int]]], *, batch_tokens: int = 16384) -> list[tuple[float, bool]]:
    """(log p(continuation | context) in nats, whether greedy decoding would give it) for pairs of token ids.

    Choices of one question share its tokens, and questions share the examples before them: each row of a batch holds a common prefix
    and, side by side, what continues it. Numbers are those of each pair on its own, up to the rounding of fp32 sums. A pair longer than
    the model's context loses tokens on its left. Raises ValueError for an empty side, or a continuation longer than the context.
    """
    longest = model.config.max_context
    sequences: dict[tuple[int, ...], int] = {}
    requests: list[tuple[int, int, list[int]]] = []  # sequence, its tokens before the first scored position, targets
    for index, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise ValueError(f"pair {index} has an empty {'context' if not context else 'continuation'}")
        if len(continuation) > longest:
            raise ValueError(f"pair {index} has a continuation of {len(continuation)} tokens, beyond the model's context of {longest}")
        read = tuple((context + continuation)[-(longest + 1) :][:-1])
        number = sequences.setdefault(read, len(sequences))
        requests.append((number, len(read) - len(continuation), continuation))
    unique = list(sequences)
    of_sequence: dict[int, list[int]] = {}
    for request, (number, _, _) in enumerate(requests):
        of_sequence.setdefault(number, []).append(request)
    result: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    rows = _rows(unique, min(LONGEST_ROW, longest))
    for batch in length_batches([row.length for row in rows], batch_tokens):
        for request, found in _score(model, [rows[i] for i in batch], unique, of_sequence, requests):
            result[request] = found
    return result


def encode_pair(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """(context, continuation) for `loglikelihoods`: the tokens of both texts joined, cut where they leave the prompt's own.

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


@dataclass
class _Row:
    """Sequences that share their first `prefix` tokens."""

    members: list[int]
    lengths: list[int]
    prefix: int

    @property
    def length(self) -> int:
        return self.prefix + sum(length - self.prefix for length in self.lengths)


def _rows(sequences: list[tuple[int, ...]], longest_row: int) -> list[_Row]:
    """Sequences in dictionary order, so that those that begin alike are neighbours, joined where that saves tokens."""
    rows: list[_Row] = []
    for number in sorted(range(len(sequences)), key=lambda i: sequences[i]):
        sequence = sequences[number]
        if rows:
            last = rows[-1]
            shared = _common(sequences[last.members[-1]], sequence)
            prefix = min(last.prefix, shared) if len(last.members) > 1 else shared
            joined = _Row([*last.members, number], [*last.lengths, len(sequence)], prefix)
            if joined.length <= min(longest_row, (1 - LEAST_SAVING) * (last.length + len(sequence))):
                rows[-1] = joined
                continue
        rows.append(_Row([number], [len(sequence)], 0))
    return rows


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Tokens that two sequences begin with in common."""
    most = min(len(first), len(second))
    return next((i for i in range(most) if first[i] != second[i]), most)


def _score(
    model: Llama,
    rows: list[_Row],
    sequences: list[tuple[int, ...]],
    of_sequence: dict[int, list[int]],
    requests: list[tuple[int, int, list[int]]],
) -> list[tuple[int, tuple[float, bool]]]:
    """(request, result) of every request whose sequence is in one of the rows."""
    shape = (len(rows), max(row.length for row in rows))
    tokens, positions, branches = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    places: list[tuple[int, int]] = []
    targets: list[int] = []
    spans: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        prefix = row.prefix
        tokens[number, :prefix] = sequences[row.members[0]][:prefix]
        positions[number, :prefix] = np.arange(prefix)
        column = prefix
        for branch, (member, length) in enumerate(zip(row.members, row.lengths, strict=True), start=1):
            end = column + length - prefix
            tokens[number, column:end] = sequences[member][prefix:]
            positions[number, column:end] = np.arange(prefix, length)
            branches[number, column:end] = branch
            for request in of_sequence[member]:
                _, start, continuation = requests[request]
                columns = [place if place < prefix else column + place - prefix for place in range(start, length)]
                spans.append((request, len(places), len(places) + len(columns)))
                places += [(number, one) for one in columns]
                targets += continuation
            column = end
    device = next(model.parameters()).device
    tokens_bt, positions_bt, branches_bt = (torch.from_numpy(array).to(device) for array in (tokens, positions, branches))
    hidden_btd = model.trunk(tokens_bt, positions_bt, branches_bt=branches_bt if int(branches.max()) > 1 else None)
    rows_n, columns_n = torch.tensor(places, device=device).T
    targets_n = torch.tensor(targets, device=device)
    chosen, greedy = [], []
    for start in range(0, len(targets), CHUNK):
        part = slice(start, start + CHUNK)
        logits_nv = model.logits(hidden_btd[rows_n[part], columns_n[part]])
        picked_n = logits_nv.gather(1, targets_n[part, None]).squeeze(1)
        chosen.append((picked_n - logits_nv.logsumexp(-1)).double().cpu())
        greedy.append((logits_nv.argmax(-1) == targets_n[part]).cpu())
    logprobs, matches = torch.cat(chosen), torch.cat(greedy)
    return [(request, (float(logprobs[start:end].sum()), bool(matches[start:end].all()))) for request, start, end in spans]
