"""Sequences that begin alike, read once: their common prefix and, side by side, what each continues it with.

A pair of answers to one prompt, or the K samples of it, cost the prompt's tokens once. No branch reads another, and each one's positions
continue the prefix's, so that hidden states are those of the sequences on their own. Short families of such sequences share a row, as
segments that do not read one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LONGEST_ROW = 256  # tokens of a row of several branches: beyond, attention over the other branches costs more than the prefix saves
LONGEST_ROW_OF_A_LONG_PREFIX = 512  # where the prefix is so long that even attention has less to do in one row than in two
ROW_MULTIPLE = 32  # row lengths are a multiple of this: matrix products in bf16 are compiled for each shape that occurs on a CPU
LEAST_SAVING = 0.1  # share of the tokens that putting a sequence into the row has to save


@dataclass(frozen=True)
class BranchedRows:
    """Rows of prefixes and branches, right-padded.

    int64 [b, t]: `tokens`, `positions`, `segments` (0: padding, else the number of the family in its row), and `branches` (0: prefix or
    padding). int64 [n], one entry a sequence: `sequences` is its index, `rows` (never falling) and `columns` the place of its last token.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    branches: Tensor
    sequences: Tensor
    rows: Tensor
    columns: Tensor

    def to(self, device: torch.device | str) -> BranchedRows:
        return BranchedRows(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def ends(self) -> tuple[Tensor, Tensor]:
        """Columns of the last tokens by row, int64 [b, m] (0 where a row has fewer sequences), and each sequence's place in m, int64 [n]."""
        counts_b = torch.bincount(self.rows, minlength=len(self.tokens))
        slots_n = torch.arange(len(self.rows), device=self.rows.device) - (counts_b.cumsum(0) - counts_b)[self.rows]
        ends_bm = torch.zeros(len(counts_b), int(counts_b.max()), dtype=torch.int64, device=self.rows.device)
        ends_bm[self.rows, slots_n] = self.columns
        return ends_bm, slots_n

    @property
    def token_count(self) -> int:
        """Tokens that are no padding: a row's last token ends a sequence."""
        ends = torch.zeros(len(self.tokens), dtype=torch.int64)
        return int((ends.scatter_reduce(0, self.rows.cpu(), self.columns.cpu(), "amax") + 1).sum())


def share_prefixes(sequences: Sequence[list[int]], batch_tokens: int) -> Iterator[BranchedRows]:
    """All sequences in batches of rows, of at most `batch_tokens` padded tokens (or one row); neighbours of like beginning make a family.

    A batch holds families of like length; one that is shorter than the longest stands behind others in a row where it fits.
    An empty sequence raises ValueError: it has no last token.
    """
    for index, sequence in enumerate(sequences):
        if not sequence:
            raise ValueError(f"sequence {index} is empty; a sequence needs at least one token")
    families = _families(sequences)
    for batch in length_batches([_row_length(family) for family in families], batch_tokens):
        yield _lay_out([families[i] for i in batch], sequences)


def _row_length(family: _Family) -> int:
    """Tokens of the shortest row that holds it."""
    return math.ceil(family.length / ROW_MULTIPLE) * ROW_MULTIPLE


@dataclass
class _Family:
    """Consecutive sequences from `start`, the length of the prefix that they share, and of the row that they make."""

    start: int
    lengths: list[int]
    prefix: int

    @property
    def length(self) -> int:
        return self.prefix + sum(length - self.prefix for length in self.lengths)


def _families(sequences: Sequence[list[int]]) -> list[_Family]:
    families: list[_Family] = []
    for index, sequence in enumerate(sequences):
        if families:
            last = families[-1]
            prefix = min(last.prefix if len(last.lengths) > 1 else len(sequence), _common(sequences[index - 1], sequence))
            joined = _Family(last.start, [*last.lengths, len(sequence)], prefix)
            less_attention = joined.length**2 <= last.length**2 + len(sequence) ** 2
            longest = LONGEST_ROW_OF_A_LONG_PREFIX if less_attention else LONGEST_ROW
            if joined.length <= min(longest, (1 - LEAST_SAVING) * (last.length + len(sequence))):
                families[-1] = joined
                continue
        families.append(_Family(index, [len(sequence)], 0))
    return families


def _common(first: list[int], second: list[int]) -> int:
    """Tokens that two sequences begin with in common, leaving each at least one of its own."""
    most = min(len(first), len(second)) - 1
    return next((i for i in range(most) if first[i] != second[i]), most)


def _lay_out(families: list[_Family], sequences: Sequence[list[int]]) -> BranchedRows:
    longest = _row_length(families[0])
    placed = _first_fit([family.length for family in families], longest)
    shape = (len(placed), longest)
    tokens, positions, segments, branches = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    ends: list[tuple[int, int, int]] = []
    for row, together in enumerate(placed):
        column = 0
        for segment, family in enumerate((families[i] for i in together), start=1):
            prefix = slice(column, column + family.prefix)
            tokens[row, prefix] = sequences[family.start][: family.prefix]
            positions[row, prefix] = np.arange(family.prefix)
            segments[row, column : column + family.length] = segment
            column = prefix.stop
            for number, length in enumerate(family.lengths):
                end = column + length - family.prefix
                tokens[row, column:end] = sequences[family.start + number][family.prefix :]
                positions[row, column:end] = np.arange(family.prefix, length)
                branches[row, column:end] = number + 1
                ends.append((family.start + number, row, end - 1))
                column = end
    places = torch.tensor(ends, dtype=torch.int64).T
    return BranchedRows(*(torch.from_numpy(a) for a in (tokens, positions, segments, branches)), *places)


def _first_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Indices by row: each in the first row of `room` tokens in which it fits."""
    rows: list[list[int]] = []
    left: list[int] = []
    for index, length in enumerate(lengths):
        row = next((row for row, free in enumerate(left) if free >= length), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(index)
        left[row] -= length
    return rows


def length_batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Indices grouped by like length, longest first; a group times its longest length stays within `batch_tokens` (or is one sequence)."""
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches
