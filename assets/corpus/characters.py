"""Many texts as one array of characters, so that words, lines and their hashes are found without a loop over texts.

Shapes: n characters, w words, l lines, d texts. Every text is followed by one line break, which is not part of it.
All hashes depend on the characters of their span alone, not on the machine, the batch or the place in it.
"""

import sys
import unicodedata
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import polars as pl

ODD = np.uint64(0x9E3779B97F4A7C15)
BASE = np.uint64(0xD1342543DE82EF95)
INVERSE = np.uint64(pow(int(BASE), -1, 2**64))

LETTER, ALPHANUMERIC, WORD, SPACE = (np.uint8(bit) for bit in (1, 2, 4, 8))
# Zero-width joiner and non-joiner belong to words (Unicode TR18, Annex C); so do letters in circles.
JOINERS, CIRCLED = (0x200C, 0x200D), ((0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))

# Beyond these the standard has ideographs at most up to the first bound, tags, and private use, which has no bits.
ASSIGNED_BELOW, TAGS = 0x34000, range(0xE0000, 0xE0200)


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """By code point: kind uint8 (bits of LETTER to SPACE), and its lower case uint32 (itself where that is not one character)."""
    kind = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    lower = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    for code in (*range(ASSIGNED_BELOW), *TAGS):
        character = chr(code)
        category = unicodedata.category(character)
        bits = np.uint8(0)
        if category[0] == "L":
            bits |= LETTER
        if category[0] in "LMN":
            bits |= ALPHANUMERIC
        if category[0] in "LM" or category in ("Nd", "Nl", "Pc"):
            bits |= WORD
        if character.isspace() and code not in (0x1C, 0x1D, 0x1E, 0x1F):
            bits |= SPACE
        kind[code] = bits
        if len(changed := character.lower()) == 1:
            lower[code] = ord(changed)
    kind[list(JOINERS)] |= WORD
    for first, last in CIRCLED:
        kind[first : last + 1] |= WORD
    return kind, lower


_POWERS: list[np.ndarray] = [np.ones(1, np.uint64), np.ones(1, np.uint64)]
# Powers for longer batches are made and dropped again: they take 16 bytes a character.
KEPT_POWERS = 1 << 22


def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """BASE and INVERSE to the powers 0 … size - 1, modulo 2^64: uint64 [at least size] each."""
    found = list(_POWERS)
    mask = 2**64 - 1
    for which, base in enumerate((BASE, INVERSE)):
        table = found[which]
        if len(table) < size:
            grown = np.empty(max(size, 1 << 16), dtype=np.uint64)
            grown[: len(table)] = table
            done = len(table)
            factor = np.uint64(int(table[-1]) * int(base) & mask)
            while done < len(grown):
                step = min(done, len(grown) - done)
                np.multiply(grown[:step], factor, out=grown[done : done + step])
                done += step
                factor = np.uint64(int(grown[done - 1]) * int(base) & mask)
            found[which] = grown
    if size <= KEPT_POWERS:
        _POWERS[:] = found
    return found[0], found[1]


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every input bit over all output bits (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Spans:
    """Runs of characters in the order of the texts: `start` and `end` int64 [spans], those of text i are `of[i]:of[i + 1]`, of int64 [d + 1]."""

    start: np.ndarray
    end: np.ndarray
    of: np.ndarray

    @property
    def length(self) -> np.ndarray:
        return self.end - self.start

    def per_text(self, values: np.ndarray) -> np.ndarray:
        """The sum of `values` [spans] by text, int64 [d]."""
        total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        return total[self.of[1:]] - total[self.of[:-1]]


@dataclass(frozen=True)
class Characters:
    """The characters of d texts: `code` uint32 [n], `kind` uint8 [n], `offsets` int64 [d + 1] (text i and its line break)."""

    code: np.ndarray
    kind: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, texts: pl.Series) -> "Characters":
        """The characters of a column without nulls. Two bytes a character times about twenty are needed while it is looked at."""
        lengths = texts.str.len_chars().to_numpy().astype(np.int64) + 1
        joined = "".join(f"{text}\n" for text in texts)
        code = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        return cls(code, _tables()[0][code], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def count(self, bit: np.uint8) -> np.ndarray:
        """By text, how many of its characters have `bit`: int64 [d]."""
        return self._per_text((self.kind & bit) > 0)

    def _per_text(self, flags: np.ndarray) -> np.ndarray:
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(flags, self.offsets[:-1], dtype=np.int64)

    def runs(self, bit: np.uint8, *, without: bool = False) -> Spans:
        """The longest runs of characters that have `bit`, or that lack it."""
        inside = ((self.kind & bit) > 0) ^ without
        if not len(inside):
            return Spans(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(len(self) + 1, np.int64))
        # The line break behind each text is no word character and is white space: it ends every run that is asked for.
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        if inside[0]:
            edges = np.concatenate([[0], edges])
        start, end = edges[0::2], edges[1::2]
        return Spans(start, end, np.searchsorted(start, self.offsets))

    @cached_property
    def words(self) -> Spans:
        r"""Runs of letters, marks, digits and connectors, as `\w+` finds them."""
        return self.runs(WORD)

    @cached_property
    def visible(self) -> Spans:
        r"""Runs of anything but white space, as `\S+` finds them."""
        return self.runs(SPACE, without=True)

    @cached_property
    def lines(self) -> Spans:
        """Lines that hold anything visible, without the white space at their edges."""
        breaks = np.flatnonzero(self.code == 10)
        runs = self.visible
        last = np.searchsorted(runs.start, breaks)  # runs before each line break
        first = np.concatenate([[0], last[:-1]])
        some = last > first
        if not len(runs.start):
            return Spans(runs.start, runs.end, np.zeros(len(self) + 1, np.int64))
        start, end = runs.start[first[some]], runs.end[last[some] - 1]
        return Spans(start, end, np.searchsorted(start, self.offsets))

    @cached_property
    def _prefix(self) -> np.ndarray:
        """Sums of (lower-cased code + 1) BASE^place over the characters before each place: uint64 [n + 1]."""
        lower = _tables()[1][self.code].astype(np.uint64)
        lower += np.uint64(1)
        lower *= _powers(len(lower))[0][: len(lower)]
        prefix = np.zeros(len(lower) + 1, dtype=np.uint64)
        np.cumsum(lower, out=prefix[1:])
        return prefix

    def hashes(self, spans: Spans) -> np.ndarray:
        """A hash of the characters of each span in lower case: uint64 [spans]."""
        value = self._prefix[spans.end] - self._prefix[spans.start]
        value *= _powers(len(self.code))[1][spans.start]
        return mixed(value + spans.length.astype(np.uint64) * ODD)

    @cached_property
    def word_hashes(self) -> np.ndarray:
        """The hashes of `words`: uint64 [w]."""
        return self.hashes(self.words)

    @cached_property
    def line_hashes(self) -> np.ndarray:
        """The hashes of `lines`: uint64 [l]."""
        return self.hashes(self.lines)


@cache
def hash_of(text: str) -> np.uint64:
    """The hash that `Characters.hashes` gives a span of this text."""
    characters = Characters.of(pl.Series([text]))
    return characters.hashes(Spans(np.array([0]), np.array([len(text)]), np.array([0, 1])))[0]
