"""Word n-grams as 64-bit hashes: what repetition and near-duplicate detection both count."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from assets.corpus.characters import ODD, Characters, Spans, mixed

__all__ = ["ODD", "Shingles", "mixed", "repeated_share", "shingles_of", "top_share", "word_shingles"]


@dataclass(frozen=True)
class Shingles:
    """`hashes` uint64 [n], the n-grams of all documents one after another; those of document i are
    `hashes[offsets[i]:offsets[i + 1]]`. `offsets` int64 [documents + 1]."""

    hashes: np.ndarray
    offsets: np.ndarray

    def of(self, document: int) -> np.ndarray:
        return self.hashes[self.offsets[document] : self.offsets[document + 1]]


def word_shingles(texts: pl.Series, size: int) -> Shingles:
    """The n-grams of `size` words of each text; words are runs of letters and digits, lower-cased.

    A text of fewer than `size` words has one shingle, all its words; a text without words has none. The hashes depend
    on the words alone, not on the machine, the library version or the other texts.
    """
    characters = Characters.of(texts)
    return shingles_of(characters.hashes(characters.words), characters.words, size)


def shingles_of(hashes: np.ndarray, words: Spans, size: int) -> Shingles:
    """As `word_shingles`, from the words' hashes uint64 [words]."""
    counts = np.diff(words.of)
    shingles = np.minimum(counts, np.maximum(counts - size + 1, 1))
    offsets = np.concatenate([[0], np.cumsum(shingles)]).astype(np.int64)
    # Every n-gram begins at a word; texts of `size` words on lose their last words as beginnings.
    begins = np.ones(len(hashes), dtype=bool)
    longer = counts > 1
    for back in range(1, size):
        some = longer & (counts > back)
        begins[words.of[1:][some] - back] = False
    # A text shorter than `size` keeps its first word as the one beginning; its n-gram ends with the text.
    first = np.flatnonzero(begins)
    length = np.full(len(first), size, dtype=np.int64)
    short = (counts > 0) & (counts < size)
    length[offsets[:-1][short]] = counts[short]
    padded = np.concatenate([hashes, np.zeros(size, np.uint64)])
    combined = length.astype(np.uint64)
    some_short = bool(short.any())
    for place in range(size):
        added = (combined + padded[first + place]) * ODD
        combined = np.where(place < length, added, combined) if some_short else added
        combined ^= combined >> np.uint64(29)
    return Shingles(mixed(combined), offsets)


# Documents of one call whose n-grams are sorted together: their number takes the low bits of the key, the hash the others.
_TOGETHER = 1 << 12
_LOW = np.uint64(_TOGETHER - 1)


def _sorted_keys(shingles: Shingles, begin: int) -> np.ndarray:
    """The n-grams of up to `_TOGETHER` documents from `begin` on as sorted keys: 52 bits of the hash, 12 of the document."""
    offsets = shingles.offsets[begin : begin + _TOGETHER + 1]
    document = np.repeat(np.arange(len(offsets) - 1, dtype=np.uint64), np.diff(offsets))
    keys = (shingles.hashes[offsets[0] : offsets[-1]] & ~_LOW) | document
    keys.sort()
    return keys


def repeated_share(shingles: Shingles) -> np.ndarray:
    """By document, the share of its n-grams that occurred before in the same document: float64 [documents].

    52 bits of each hash are compared: in a document of a million words the share is wrong by 1e-6 with a probability of 1e-4.
    """
    counts = np.diff(shingles.offsets)
    repeats = np.zeros(len(counts), dtype=np.int64)
    for begin in range(0, len(counts), _TOGETHER):
        keys = _sorted_keys(shingles, begin)
        again = keys[1:][keys[1:] == keys[:-1]] & _LOW
        size = min(_TOGETHER, len(counts) - begin)
        repeats[begin : begin + size] = np.bincount(again.astype(np.int64), minlength=size)
    return repeats / np.maximum(counts, 1)


def top_share(shingles: Shingles, size: int, words: np.ndarray) -> np.ndarray:
    """By document, the share of its words that stand in its most frequent n-gram: float64 [documents] in [0, 1].

    Occurrences count as if they did not overlap; an n-gram that occurs once counts as 0. `words` int64 [documents].
    """
    counts = np.diff(shingles.offsets)
    top = np.zeros(len(counts), dtype=np.int64)
    for begin in range(0, len(counts), _TOGETHER):
        keys = _sorted_keys(shingles, begin)
        if not len(keys):
            continue
        edges = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)]])
        runs = np.diff(edges)
        several = runs > 1
        np.maximum.at(top, begin + (keys[edges[:-1][several]] & _LOW).astype(np.int64), runs[several])
    return np.minimum(top * size / np.maximum(words, 1), 1.0)
