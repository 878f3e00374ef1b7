"""Word n-grams as 64-bit hashes: what repetition and near-duplicate detection both count."""

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl

ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Shingles:
    """`hashes` uint64 [n], the n-grams of all documents one after another; those of document i are
    `hashes[offsets[i]:offsets[i + 1]]`. `offsets` int64 [documents + 1]."""

    hashes: np.ndarray
    offsets: np.ndarray

    def of(self, document: int) -> np.ndarray:
        return self.hashes[self.offsets[document] : self.offsets[document + 1]]


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every input bit over all output bits (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def word_shingles(texts: pl.Series, size: int) -> Shingles:
    """The n-grams of `size` words of each text; words are runs of letters and digits, lower-cased.

    A text of fewer than `size` words has one shingle, all its words; a text without words has none. The hashes depend
    on the words alone (BLAKE2b of each distinct word), not on the machine, the library version or the other texts.
    """
    words = texts.str.to_lowercase().str.extract_all(r"\w+")
    counts = words.list.len().fill_null(0).to_numpy().astype(np.int64)
    # explode() gives one null for an empty list, which drop_nulls() takes out again
    flat = words.explode().drop_nulls().alias("word").to_frame()
    distinct = flat.get_column("word").unique()
    digests = np.array(
        [int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") for word in distinct],
        dtype=np.uint64,
    )
    table = pl.DataFrame({"word": distinct, "hash": digests})
    hashes = flat.join(table, on="word", how="left", maintain_order="left").get_column("hash").to_numpy()
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    shingles = np.minimum(counts, np.maximum(counts - size + 1, 1))
    offsets = np.concatenate([[0], np.cumsum(shingles)]).astype(np.int64)
    document = np.repeat(np.arange(len(counts)), shingles)
    first = starts[document] + np.arange(offsets[-1]) - offsets[document]
    length = np.minimum(counts, size)[document]
    combined = length.astype(np.uint64)
    for place in range(size):
        inside = place < length
        word = hashes[np.where(inside, first + place, 0)] if len(hashes) else np.zeros(0, np.uint64)
        combined = np.where(inside, (combined + word) * ODD, combined)
        combined ^= combined >> np.uint64(29)
    return Shingles(mixed(combined), offsets)


def repeated_share(shingles: Shingles) -> np.ndarray:
    """By document, the share of its n-grams that occurred before in the same document: float64 [documents]."""
    counts = np.diff(shingles.offsets)
    document = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((shingles.hashes, document))
    hashes, document = shingles.hashes[order], document[order]
    again = np.zeros(len(hashes), dtype=bool)
    again[1:] = (hashes[1:] == hashes[:-1]) & (document[1:] == document[:-1])
    repeats = np.bincount(document[again], minlength=len(counts))
    return repeats / np.maximum(counts, 1)
