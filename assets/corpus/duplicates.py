"""Exact and near duplicates. A training document too near a held-out one goes; a held-out one never goes for it."""

from collections.abc import Callable
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
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("shingle_words", "bands", "rows"):
            if getattr(self, name) < 1:
                raise TampuError(f"near duplicates: {name} is {getattr(self, name)}; expected at least 1")
        if not 0 < self.similarity <= 1:
            raise TampuError(f"near duplicates: similarity is {self.similarity}; expected above 0 and at most 1")


def exact_duplicates(frame: pl.DataFrame) -> pl.DataFrame:
    """The documents to remove because another has the same text: DUPLICATE_SCHEMA, similarity 1, sorted by id.

    The representative that stays is the first by split (test, validation, train), then by document_id.
    """
    ranked = _ranked(frame).sort("rank", "document_id")
    removed = ranked.with_columns(representative=pl.col("document_id").first().over("text"), similarity=pl.lit(1.0))
    return _removed(removed)


def near_duplicates(frame: pl.DataFrame, settings: NearDuplicates = NearDuplicates()) -> pl.DataFrame:
    """The documents to remove because they are near another: DUPLICATE_SCHEMA, sorted by id.

    Near pairs form a graph; of each connected component the first by split (test, validation, train), then by
    document_id, stays. `similarity` is the Jaccard similarity of the removed document's and the representative's
    shingles; where the two are joined through a third document it may lie below the threshold.
    """
    frame = frame.sort("document_id")
    shingles = word_shingles(frame["text"], settings.shingle_words)
    component = _components(shingles, signatures(shingles, settings), settings)
    ranked = _ranked(frame).with_columns(component=pl.Series(component), place=pl.int_range(pl.len()))
    by_component = ranked.sort("rank", "document_id").group_by("component", maintain_order=True)
    best = by_component.agg(representative=pl.col("document_id").first(), other=pl.col("place").first())
    removed = ranked.join(best, on="component").filter(pl.col("document_id") != pl.col("representative"))
    similarity = [jaccard(shingles.of(a), shingles.of(b)) for a, b in removed.select("place", "other").iter_rows()]
    return _removed(removed.with_columns(similarity=pl.Series(similarity, dtype=pl.Float64)))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The Jaccard similarity of two sets given as arrays that may hold repeats; 0 if both are empty."""
    a, b = np.unique(a), np.unique(b)
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(len(a) + len(b) - shared, 1)


def signatures(shingles: Shingles, settings: NearDuplicates, batch: int = 1 << 18) -> np.ndarray:
    """MinHash signatures uint64 [documents, bands * rows]; a document without shingles has all ones.

    Hash i of shingle x is mix(x xor key_i) with keys drawn from the seed. Works in batches of about `batch` shingles.
    """
    keys = np.random.Generator(np.random.PCG64(settings.seed)).integers(0, 2**64, size=settings.bands * settings.rows, dtype=np.uint64)
    multipliers = mixed(keys) | np.uint64(1)
    documents = len(shingles.offsets) - 1
    result = np.full((documents, len(keys)), np.iinfo(np.uint64).max, dtype=np.uint64)
    filled = np.flatnonzero(np.diff(shingles.offsets))
    first = 0
    while first < len(filled):
        reach = shingles.offsets[filled[first]] + batch
        last = max(int(np.searchsorted(shingles.offsets[filled + 1], reach, side="right")), first + 1)
        part = filled[first:last]
        begin, end = shingles.offsets[part[0]], shingles.offsets[part[-1] + 1]
        hashes, starts = shingles.hashes[begin:end], shingles.offsets[part] - begin
        for index, (key, multiplier) in enumerate(zip(keys, multipliers, strict=True)):
            result[part, index] = np.minimum.reduceat((hashes ^ key) * multiplier, starts)
        first = last
    return result


def _components(shingles: Shingles, signature: np.ndarray, settings: NearDuplicates) -> list[int]:
    """By document, the number of its connected component in the graph of candidates at least `similarity` alike."""
    documents = len(signature)
    forest = _Forest(documents)
    unlike: set[tuple[int, int]] = set()
    sets: dict[int, np.ndarray] = {}

    def near(a: int, b: int) -> bool:
        if forest.root(a) == forest.root(b):
            return True
        pair = (a, b) if a < b else (b, a)
        if pair in unlike:
            return False
        for document in pair:
            if document not in sets:
                sets[document] = np.unique(shingles.of(document))
        one, two = sets[a], sets[b]
        shared = len(np.intersect1d(one, two, assume_unique=True))
        if shared >= settings.similarity * (len(one) + len(two) - shared):
            forest.join(a, b)
            return True
        unlike.add(pair)
        return False

    has_words = np.diff(shingles.offsets) > 0
    for band in range(settings.bands):
        for bucket in _buckets(signature[:, band * settings.rows : (band + 1) * settings.rows], has_words):
            _join_bucket(bucket, near)
    return [forest.root(document) for document in range(documents)]


def _buckets(rows: np.ndarray, keep: np.ndarray) -> list[list[int]]:
    """The groups of two or more documents whose `rows` [documents, rows of a band] are equal."""
    key = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T:
        key = mixed(key ^ column)
    candidates = np.flatnonzero(keep)
    order = candidates[np.argsort(key[candidates], kind="stable")]
    edges = np.flatnonzero(np.diff(key[order])) + 1
    return [group.tolist() for group in np.split(order, edges) if len(group) > 1]


def _join_bucket(bucket: list[int], near: Callable[[int, int], bool]) -> None:
    """Finds the bucket's connected components without comparing documents that are already joined."""
    remaining = bucket
    while len(remaining) > 1:
        frontier, remaining = [remaining[0]], remaining[1:]
        while frontier and remaining:
            document = frontier.pop()
            joined = [other for other in remaining if near(document, other)]
            members = set(joined)
            frontier += joined
            remaining = [other for other in remaining if other not in members]


class _Forest:
    """Union-find whose root is the smallest member, so that it does not depend on the order of joins."""

    def __init__(self, size: int):
        self.parent = list(range(size))

    def root(self, member: int) -> int:
        while self.parent[member] != member:
            self.parent[member] = self.parent[self.parent[member]]
            member = self.parent[member]
        return member

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self.parent[max(a, b)] = min(a, b)


def _ranked(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(rank=pl.col("split").replace_strict(SPLIT_RANK, return_dtype=pl.Int8))


def _removed(frame: pl.DataFrame) -> pl.DataFrame:
    return (
        frame.filter(pl.col("document_id") != pl.col("representative"))
        .select(pl.col(name).cast(dtype) for name, dtype in DUPLICATE_SCHEMA.items())
        .sort("document_id")
    )
