"""Interpolated Kneser-Ney n-grams: the baseline that a language model has to be measured against."""

from __future__ import annotations

import numpy as np

# Keys below this are numbered through a table of that many entries, 5 bytes each.
TABLE = 1 << 25


def kneser_ney_bits(train_ids: np.ndarray, test_ids: np.ndarray, order: int, vocab: int, discount: float = 0.75) -> float:
    """Bits that an n-gram model of this order, counted on `train_ids`, needs for `test_ids` (ints in [0, vocab), each one stream).

    Divide by the bytes of the test text for bits per byte. Raises ValueError as `kneser_ney_probabilities` does.
    """
    return float(-np.log2(kneser_ney_probabilities(train_ids, test_ids, order, vocab, discount)).sum())


def kneser_ney_probabilities(train_ids: np.ndarray, test_ids: np.ndarray, order: int, vocab: int, discount: float = 0.75) -> np.ndarray:
    """The probability float64 [n] of each test id given the up to `order - 1` ids before it.

    Chen and Goodman 1998, eq. 24 with one discount D: p(w|h) = max(c(hw) - D, 0)/c(h) + D·N(h•)/c(h) · p(w|h'), where h' drops the first
    id of h. c counts occurrences at the highest order, and below it the distinct ids seen before the n-gram. Under the unigrams
    lies the uniform distribution over `vocab`, so that no id has probability 0. A history never seen passes to h'.
    Raises ValueError for ids out of range, an empty training stream, order < 1, or a discount outside (0, 1].
    """
    train, test = np.asarray(train_ids, dtype=np.int64), np.asarray(test_ids, dtype=np.int64)
    if order < 1 or not 0 < discount <= 1 or not len(train):
        found = f"order is {order}, discount {discount}, and there are {len(train)} training ids"
        raise ValueError(f"{found}; order >= 1, 0 < discount <= 1 and some ids are needed")
    for name, ids in (("train_ids", train), ("test_ids", test)):
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocab:
            raise ValueError(f"{name} has ids from {ids.min()} to {ids.max()}; they must be in [0, {vocab})")
    train_grams, test_grams, sizes = _number_grams(train, test, order, vocab)
    probabilities = np.full(len(test), 1.0 / vocab)
    for n in range(1, order + 1):
        ids, size = train_grams[n], sizes[n]
        if n == order:
            counts = np.bincount(ids[ids >= 0], minlength=size)
        else:
            longer = _first_positions(train_grams[n + 1], sizes[n + 1])
            counts = np.bincount(ids[longer], minlength=size)
        histories = _histories(train_grams, n)[_first_positions(ids, size)]
        totals = np.bincount(histories, weights=counts, minlength=sizes[n - 1])
        distinct = np.bincount(histories[counts > 0], minlength=sizes[n - 1])
        history = _histories(test_grams, n)
        known = (history >= 0) & (np.append(totals, 0)[history] > 0)
        history = history[known]
        gram = test_grams[n][known]
        count = np.where(gram >= 0, np.append(counts, 0)[gram], 0)
        kept = np.maximum(count - discount, 0) / totals[history]
        probabilities[known] = kept + discount * distinct[history] / totals[history] * probabilities[known]
    return probabilities


def _number_grams(train: np.ndarray, test: np.ndarray, order: int, vocab: int) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """For n = 0 … order: the number of the n-gram that ends at each position of train and of test, and how many there are.

    The number is -1 where the stream has not n ids yet, or where an n-gram of test is not in train. An n-gram is numbered from its first
    id and the number of its last n - 1 ids, so that no key exceeds the stream's length times `vocab`.
    """
    train_grams, test_grams, sizes = [np.zeros(len(train), np.int64)], [np.zeros(len(test), np.int64)], [1]
    for n in range(1, order + 1):
        train_keys, test_keys = (_keys(ids, grams[-1], n, vocab) for ids, grams in ((train, train_grams), (test, test_grams)))
        types, numbers = _distinct(train_keys[n - 1 :], sizes[-1] * vocab)
        train_grams.append(np.concatenate((np.full(min(n - 1, len(train)), -1), numbers)))
        place = np.searchsorted(types, test_keys)
        found = (test_keys >= 0) & (np.append(types, -1)[place] == test_keys)
        test_grams.append(np.where(found, place, -1))
        sizes.append(len(types))
    return train_grams, test_grams, sizes


def _distinct(keys: np.ndarray, bound: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys in rising order, and for each key its place among them; a table replaces the sort where all keys are below `TABLE`."""
    if bound > TABLE:
        return np.unique(keys, return_inverse=True)
    present = np.zeros(bound, dtype=bool)
    present[keys] = True
    return np.flatnonzero(present), (np.cumsum(present, dtype=np.int32) - 1)[keys].astype(np.int64)


def _keys(ids: np.ndarray, shorter: np.ndarray, n: int, vocab: int) -> np.ndarray:
    first = np.full(len(ids), -1, dtype=np.int64)
    first[n - 1 :] = ids[: max(0, len(ids) - n + 1)]
    return np.where((first >= 0) & (shorter >= 0), shorter * vocab + first, -1)


def _first_positions(grams: np.ndarray, size: int) -> np.ndarray:
    """For each number, a position at which that n-gram ends."""
    positions = np.zeros(size, dtype=np.int64)
    present = np.flatnonzero(grams >= 0)
    positions[grams[present]] = present
    return positions


def _histories(grams: list[np.ndarray], n: int) -> np.ndarray:
    """The number of the (n - 1)-gram that ends just before each position (-1: none)."""
    before_first = 0 if n == 1 else -1
    return np.concatenate(([before_first], grams[n - 1]))[:-1]
