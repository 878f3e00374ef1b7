"""Rows of a fixed length for training: examples packed without cutting, or one long stream cut into blocks."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from model.dialogue import Example


class Column(Protocol):
    """An array, or what gives its rows when they are asked for."""

    def __getitem__(self, rows: Any) -> np.ndarray: ...


class Rows(Protocol):
    """Training rows that can be asked for by number: `Packed`, or `model.token_shards.StreamBlocks`."""

    @property
    def tokens(self) -> Column: ...

    @property
    def learn(self) -> Column: ...

    @property
    def segments(self) -> Column: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Packed:
    """Training rows: tokens int32 [n, t], learn bool [n, t], segments int32 [n, t] (1, 2, … the examples of a row, 0 padding).

    `learn[i, j]` asks for the prediction of `tokens[i, j]` from the tokens of its own segment before it.
    """

    tokens: np.ndarray
    learn: np.ndarray
    segments: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def learned(self) -> int:
        """How many tokens are predicted: those marked, less those that begin a segment and have nothing before them."""
        return int((self.learn[:, 1:] & (self.segments[:, 1:] == self.segments[:, :-1]) & (self.segments[:, 1:] > 0)).sum())


@dataclass(frozen=True)
class MaskFaults:
    """How many examples of packed rows break an invariant that a mask over answers keeps.

    `all_ones`: everything after the first token is learned, the question too. `all_zeros`: nothing is. `eos_not_learned`: the last token
    is not EOS, or not learned, so that a model could not learn to stop.
    """

    examples: int
    all_ones: int
    all_zeros: int
    eos_not_learned: int


def mask_faults(packed: Packed, eos_id: int) -> MaskFaults:
    """Count the examples of rows made by `pack` that break an invariant."""
    width = int(packed.segments.max(initial=0)) + 1
    rows, columns = np.nonzero(packed.segments)
    segments = rows * width + packed.segments[rows, columns]
    first = np.concatenate(([True], segments[1:] != segments[:-1])) if len(segments) else np.zeros(0, bool)
    last = np.roll(first, -1)
    learn = packed.learn[rows, columns]
    index = np.cumsum(first) - 1
    count = int(first.sum())
    learned = np.bincount(index[learn & ~first], minlength=count)
    length = np.bincount(index[~first], minlength=count)
    stops = learn[last] & (packed.tokens[rows, columns][last] == eos_id)
    return MaskFaults(count, int((learned == length).sum()), int((learned == 0).sum()), int((~stops).sum()))


def pack(examples: Sequence[Example], context: int, *, seed: int) -> Packed:
    """Rows of `context` tokens that hold whole examples, none of which sees another.

    Examples come in an order drawn from the seed; each goes to the row whose free space fits it most tightly, else to a new one
    (best fit). The paper concatenates examples and does not tell whether they see one another; keeping them apart is our
    choice: a packed example then has exactly the logits that it has alone. Raises ValueError for an empty example or one
    longer than `context`.
    """
    for index, example in enumerate(examples):
        if not 0 < len(example.tokens) <= context:
            raise ValueError(f"example {index} has {len(example.tokens)} tokens; a row holds 1 to {context}: drop it or raise the context")
    rows: list[list[Example]] = []
    by_space: dict[int, list[int]] = {}
    spaces: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(examples)):
        example = examples[index]
        size = len(example.tokens)
        place = bisect_left(spaces, size)
        if place == len(spaces):
            space, row = context, len(rows)
            rows.append([])
        else:
            space = spaces[place]
            row = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[place]
        rows[row].append(example)
        left = space - size
        if left:
            if left not in by_space:
                by_space[left] = []
                insort(spaces, left)
            by_space[left].append(row)
    return _fill(rows, context)


def _fill(rows: list[list[Example]], context: int) -> Packed:
    shape = (len(rows), context)
    packed = Packed(np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, np.int32))
    for i, row in enumerate(rows):
        start = 0
        for segment, example in enumerate(row, start=1):
            end = start + len(example.tokens)
            packed.tokens[i, start:end] = example.tokens
            packed.learn[i, start:end] = example.learn
            packed.segments[i, start:end] = segment
            start = end
    return packed


def blocks(token_stream: np.ndarray, context: int, *, bos_id: int = 1) -> Packed:
    """A stream of documents (int [n], each beginning with BOS) cut into rows of `context` tokens, all of them learned.

    Each row begins with the last token of the row before, so that every token but a document's BOS is predicted exactly once.
    Documents do not see one another (our choice: the paper does not tell). The last row is padded.
    """
    stream = np.asarray(token_stream, dtype=np.int32)
    if context < 2 or stream.ndim != 1 or len(stream) < 2:
        raise ValueError(f"a stream of shape {stream.shape} in blocks of {context}: both need at least 2 tokens")
    step = context - 1
    count = -(-(len(stream) - 1) // step)
    padded = np.zeros(count * step + 1, dtype=np.int32)
    padded[: len(stream)] = stream
    index = np.arange(count)[:, None] * step + np.arange(context)
    tokens, real = padded[index], index < len(stream)
    segments = np.where(real, 1 + np.cumsum(tokens == bos_id, axis=1), 0).astype(np.int32)
    return Packed(tokens, real, segments)
