"""Exact and near duplicates. A training document too near a held-out one goes; a held-out one never goes for it.

What is kept in memory of a document are a few numbers: the digest of its text here, its band keys and shingles in files
of `assets.corpus.spill`. So the corpus may be larger than the memory.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from assets.corpus.shingles import Shingles, mixed, word_shingles
from resources.errors import TampuError

# The held-out parts outrank train, so that a duplicate across splits is removed from train.
SPLIT_RANK = {"test": 0, "validation": 1, "train": 2}

DUPLICATE_SCHEMA: dict[str, type[pl.DataType]] = {
    "document_id": pl.String,
    "representative": pl.String,
    "similarity": pl.Float64,
}

# By number of a document, its distinct shingles in order: uint64 [shingles].
ShingleSet = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class NearDuplicates:
    """MinHash-LSH: 5-gram word shingles, 112 hashes in 14 bands of 8 rows (datatrove's and FineWeb's setting).

    A pair of Jaccard similarity s shares a band with probability 1 - (1 - s^8)^14: 0.56 at 0.7, 0.92 at 0.8, 0.99 at
    0.85. Candidates are then compared exactly and joined from `similarity` on (our choice: it keeps chance collisions
    of unlike documents, 5 % at s = 0.5, from removing anything).
    """

    shingle_words: int = 5
    bands: int = 14
    rows: int = 8
    similarity: float = 0.7
    seed: int = 21

    def __post_init__(self) -> None:
        for name in ("shingle_words", "bands", "rows"):
            if getattr(self, name) < 1:
                raise TampuError(f"near duplicates: {name} is {getattr(self, name)}; expected at least 1")
        if not 0 < self.similarity <= 1:
            raise TampuError(f"near duplicates: similarity is {self.similarity}; expected above 0 and at most 1")


@dataclass(frozen=True)
class Removed:
    """Documents to remove: number `document[i]` for `representative[i]`, to which it has `similarity[i]`; sorted by document."""

    document: np.ndarray
    representative: np.ndarray
    similarity: np.ndarray


def ranks(splits: pl.Series) -> np.ndarray:
    """By document the rank of its split: int8 [documents]."""
    return splits.replace_strict(SPLIT_RANK, return_dtype=pl.Int8).to_numpy()


def digests(texts: pl.Series) -> np.ndarray:
    """By text 128 bits of its BLAKE2b: uint64 [texts, 2]. That two different texts of 10^9 share one has a chance of 10^-21."""
    found = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(found, dtype="<u8").reshape(-1, 2)


def exact(digest: np.ndarray, rank: np.ndarray) -> Removed:
    """The documents whose text an earlier one has: by split first (test, validation, train), then by number.

    `digest` uint64 [documents, 2], `rank` int8 [documents].
    """
    order = np.lexsort((np.arange(len(rank)), rank, digest[:, 1], digest[:, 0]))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (digest[order[1:]] != digest[order[:-1]]).any(axis=1)
    first = order[np.flatnonzero(new)[np.cumsum(new) - 1]] if len(order) else order
    removed = order[~new]
    back = np.argsort(removed)
    return Removed(removed[back], first[~new][back], np.ones(len(removed)))


def signatures(shingles: Shingles, settings: NearDuplicates, batch: int = 1 << 16) -> np.ndarray:
    """MinHash signatures uint64 [documents, bands * rows]; a document without shingles has all ones.

    Hash i of shingle x is (x xor key_i) times an odd number_i, with keys drawn from the seed. Works in batches of about
    `batch` shingles, so that they stay in the processor's cache.
    """
    keys = np.random.Generator(np.random.PCG64(settings.seed)).integers(0, 2**64, size=settings.bands * settings.rows, dtype=np.uint64)
    multipliers = mixed(keys) | np.uint64(1)
    documents = len(shingles.offsets) - 1
    result = np.full((len(keys), documents), np.iinfo(np.uint64).max, dtype=np.uint64)
    filled = np.flatnonzero(np.diff(shingles.offsets))
    first = 0
    while first < len(filled):
        reach = shingles.offsets[filled[first]] + batch
        last = max(int(np.searchsorted(shingles.offsets[filled + 1], reach, side="right")), first + 1)
        part = filled[first:last]
        begin, end = shingles.offsets[part[0]], shingles.offsets[part[-1] + 1]
        hashes, starts = shingles.hashes[begin:end], shingles.offsets[part] - begin
        work = np.empty_like(hashes)
        for index, (key, multiplier) in enumerate(zip(keys, multipliers, strict=True)):
            np.bitwise_xor(hashes, key, out=work)
            np.multiply(work, multiplier, out=work)
            result[index, part] = np.minimum.reduceat(work, starts)
        first = last
    return result.T


def band_keys(signature: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """A hash of each band's rows: uint64 [documents, bands]. Documents with an equal key in a band are candidates."""
    keys = np.zeros((len(signature), settings.bands), dtype=np.uint64)
    for band in range(settings.bands):
        for row in range(band * settings.rows, (band + 1) * settings.rows):
            keys[:, band] = mixed(keys[:, band] ^ signature[:, row])
    return keys


def buckets(keys: np.ndarray, keep: np.ndarray) -> Iterator[np.ndarray]:
    """The groups of two or more of the documents `keep` int64 [n] whose `keys` [n] are equal."""
    order = np.argsort(keys, kind="stable")
    edges = np.concatenate([[0], np.flatnonzero(np.diff(keys[order])) + 1, [len(order)]])
    for group in np.flatnonzero(np.diff(edges) > 1):
        yield keep[order[edges[group] : edges[group + 1]]]


def candidates(bands: Callable[[int], np.ndarray], keep: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """The documents among `keep` that share a band with another of them: int64, sorted. `bands(i)` gives uint64 [documents]."""
    found = np.zeros(len(keep), dtype=bool)
    for band in range(settings.bands):
        keys = bands(band)[keep]
        order = np.argsort(keys, kind="stable")
        same = keys[order[1:]] == keys[order[:-1]]
        found[order[1:][same]] = True
        found[order[:-1][same]] = True
    return keep[found]


def near(bands: Callable[[int], np.ndarray], keep: np.ndarray, rank: np.ndarray, shingles: ShingleSet, settings: NearDuplicates) -> Removed:
    """The documents among `keep` (int64, sorted; see `candidates`) to remove because they are near another.

    Near pairs form a graph; of each connected component the first by split (test, validation, train), then by number,
    stays. `similarity` is the Jaccard similarity of the removed document's and the representative's shingles; where the
    two are joined through a third document it may lie below the threshold.
    """
    place = {int(document): index for index, document in enumerate(keep)}
    forest = _Forest(len(keep))
    unlike: set[tuple[int, int]] = set()

    def alike(a: int, b: int) -> bool:
        one, two = place[a], place[b]
        if forest.root(one) == forest.root(two):
            return True
        pair = (a, b) if a < b else (b, a)
        if pair in unlike:
            return False
        if _share(shingles(a), shingles(b)) >= settings.similarity:
            forest.join(one, two)
            return True
        unlike.add(pair)
        return False

    for band in range(settings.bands):
        for bucket in buckets(bands(band)[keep], keep):
            _join_bucket(bucket.tolist(), alike)
    component = np.array([forest.root(index) for index in range(len(keep))], dtype=np.int64)
    order = np.lexsort((keep, rank[keep], component))
    new = np.ones(len(order), dtype=bool)
    new[1:] = component[order][1:] != component[order][:-1]
    best = order[np.flatnonzero(new)[np.cumsum(new) - 1]] if len(order) else order
    removed, representative = keep[order[~new]], keep[best[~new]]
    back = np.argsort(removed)
    removed, representative = removed[back], representative[back]
    similarity = [_share(shingles(int(a)), shingles(int(b))) for a, b in zip(removed, representative, strict=True)]
    return Removed(removed, representative, np.array(similarity, dtype=np.float64))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The Jaccard similarity of two sets given as arrays that may hold repeats; 0 if both are empty."""
    return _share(np.unique(a), np.unique(b))


def _share(a: np.ndarray, b: np.ndarray) -> float:
    """The Jaccard similarity of two sorted arrays without repeats."""
    both = np.concatenate([a, b])
    both.sort()
    shared = int((both[1:] == both[:-1]).sum())
    return shared / max(len(both) - shared, 1)


def exact_duplicates(frame: pl.DataFrame) -> pl.DataFrame:
    """The documents of a frame to remove because another has the same text: DUPLICATE_SCHEMA, similarity 1, sorted by id.

    The representative that stays is the first by split (test, validation, train), then by document_id.
    """
    frame = frame.sort("document_id")
    return _named(exact(digests(frame["text"]), ranks(frame["split"])), frame)


def near_duplicates(frame: pl.DataFrame, settings: NearDuplicates = NearDuplicates()) -> pl.DataFrame:
    """The documents of a frame to remove because they are near another: DUPLICATE_SCHEMA, sorted by id (see `near`)."""
    frame = frame.sort("document_id")
    shingles = word_shingles(frame["text"], settings.shingle_words)
    keys = band_keys(signatures(shingles, settings), settings)
    filled = np.flatnonzero(np.diff(shingles.offsets))
    keep = candidates(lambda band: keys[:, band], filled, settings)
    found = near(lambda band: keys[:, band], keep, ranks(frame["split"]), lambda document: np.unique(shingles.of(document)), settings)
    return _named(found, frame)


def _named(removed: Removed, frame: pl.DataFrame) -> pl.DataFrame:
    names = frame["document_id"]
    columns = (names[removed.document], names[removed.representative], pl.Series(removed.similarity, dtype=pl.Float64))
    return pl.DataFrame(dict(zip(DUPLICATE_SCHEMA, columns, strict=True)), schema=DUPLICATE_SCHEMA)


def _join_bucket(bucket: list[int], alike: Callable[[int, int], bool]) -> None:
    """Finds the bucket's connected components without comparing documents that are already joined."""
    remaining = bucket
    while len(remaining) > 1:
        frontier, remaining = [remaining[0]], remaining[1:]
        while frontier and remaining:
            document = frontier.pop()
            joined = [other for other in remaining if alike(document, other)]
            members = set(joined)
            frontier += joined
            remaining = [other for other in remaining if other not in members]


class _Forest:
    """Union-find whose root is the smallest member, so that it does not depend on the order of joins."""

    def __init__(self, size: int):
        self.parent = array("q", range(size))

    def root(self, member: int) -> int:
        parent = self.parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self.parent[max(a, b)] = min(a, b)
