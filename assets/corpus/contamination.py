"""Contamination of evaluation samples by the training text, as Llama 2 measures it (arXiv:2307.09288, A.6; recipe 20).

A token of a sample is contaminated if it stands in a token n-gram longer than L that sample and training text share.
An n-gram may differ in up to four positions (the skip-gram budget), but not in its first ten tokens nor its last.
The paper uses suffix arrays on 1,500 cores. Here the first ten tokens are the seed: an index of the samples' 10-grams
(a bitmap and their sorted hashes) is searched for every 10-gram of the training text, and each hit is extended. That is
exact. The training text is read once from the disk; only the samples are in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from assets.corpus.shingles import ODD, mixed
from resources.errors import TampuError

SEED = 10
"""Tokens at the start of a match that must be equal one by one."""

MIN_LENGTHS = (10, 20, 30, 40, 50)
SKIP_BUDGET = 4


# What stands for the end of a document, and for every place outside of the training text.
BORDER = -2

BITMAP_BITS = 24


@dataclass(frozen=True)
class CorpusTokens:
    """The training text by position: `parts` are integer arrays one after another, which may be memory-mapped.

    A document begins with the token `border` (BOS), or is ended by a negative number; no match crosses either.
    """

    parts: Sequence[np.ndarray]
    border: int | None = None
    starts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        starts = np.concatenate([[0], np.cumsum([len(part) for part in self.parts])]).astype(np.int64)
        object.__setattr__(self, "starts", starts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """The tokens of `start:stop`, cut at the end: int64, borders as BORDER."""
        found = [part[max(start - at, 0) : max(stop - at, 0)] for part, at in zip(self.parts, self.starts, strict=False)]
        return self._bordered(np.concatenate([np.zeros(0, np.int64), *(part.astype(np.int64) for part in found if len(part))]))

    def at(self, places: np.ndarray) -> np.ndarray:
        """The tokens at `places` int64, BORDER outside of the text: int64."""
        result = np.full(len(places), BORDER, dtype=np.int64)
        which = np.searchsorted(self.starts, places, side="right") - 1
        for number in range(len(self.parts)):
            inside = which == number
            if inside.any():
                result[inside] = self.parts[number][places[inside] - self.starts[number]]
        return self._bordered(result)

    def _bordered(self, tokens: np.ndarray) -> np.ndarray:
        ends = tokens < 0 if self.border is None else (tokens < 0) | (tokens == self.border)
        tokens[ends] = BORDER
        return tokens


@dataclass(frozen=True)
class Matches:
    """Maximal matches: sample `sample[i]` shares its tokens `start[i] : start[i] + length[i]` with the training text.

    int64 arrays of one length. `sample_lengths` int64 [samples] are the tokens of every sample.
    """

    sample: np.ndarray
    start: np.ndarray
    length: np.ndarray
    sample_lengths: np.ndarray


def contamination(
    samples: Sequence[np.ndarray], corpus: np.ndarray | CorpusTokens, *, min_length: int, skip_budget: int = SKIP_BUDGET
) -> np.ndarray:
    """The share of contaminated tokens of each sample: float64 [samples] in [0, 1]; 0 for an empty sample.

    `samples` are int token arrays, `corpus` one int array of the training documents one after another, with a negative
    number between two documents, which no match crosses. A match counts if it is longer than `min_length` tokens; all
    its tokens count, the skipped ones included (our choice: they stand inside the n-gram).
    To judge several lengths call `find_matches` once and `contaminated_share` for each.
    """
    return contaminated_share(find_matches(samples, corpus, skip_budget=skip_budget), min_length)


def contaminated_share(matches: Matches, min_length: int) -> np.ndarray:
    """The share of each sample's tokens that stand in a match longer than `min_length` (at least 10) tokens."""
    if min_length < SEED:
        raise TampuError(f"contamination: min_length is {min_length}; a match begins with {SEED} equal tokens, so at least that")
    offsets = np.concatenate([[0], np.cumsum(matches.sample_lengths)]).astype(np.int64)
    keep = matches.length > min_length
    begin = offsets[matches.sample[keep]] + matches.start[keep]
    depth = np.zeros(offsets[-1] + 1, dtype=np.int64)
    np.add.at(depth, begin, 1)
    np.add.at(depth, begin + matches.length[keep], -1)
    covered = np.concatenate([[0], np.cumsum(np.cumsum(depth[:-1]) > 0)])
    return (covered[offsets[1:]] - covered[offsets[:-1]]) / np.maximum(matches.sample_lengths, 1)


def find_matches(
    samples: Sequence[np.ndarray], corpus: np.ndarray | CorpusTokens, *, skip_budget: int = SKIP_BUDGET, batch: int = 1 << 20
) -> Matches:
    """Every match of more than ten tokens that cannot begin earlier on the same alignment with the same seed run.

    Memory: a few numbers a token of the samples, and `batch` tokens of the corpus or alignments at a time.
    """
    if skip_budget < 0:
        raise TampuError(f"contamination: skip_budget is {skip_budget}; expected 0 or more")
    corpus = corpus if isinstance(corpus, CorpusTokens) else CorpusTokens([np.asarray(corpus)])
    # A negative number ends every sample (-1) and every document (BORDER): the two are unlike.
    lengths = np.array([len(sample) for sample in samples], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths + 1)])[:-1].astype(np.int64) + 1
    tokens = np.full(int((lengths + 1).sum()) + 1, -1, dtype=np.int64)
    for start, sample in zip(starts, samples, strict=True):
        tokens[start : start + len(sample)] = sample
    if (np.delete(tokens, np.concatenate([[0], starts + lengths])) < 0).any():
        raise TampuError("contamination: a sample holds a negative token; token ids start at 0")

    found: list[tuple[np.ndarray, np.ndarray]] = []
    for here, there in _seeds(tokens, corpus, batch):
        # An alignment whose tokens before the seed are equal too is the tail of one that begins earlier.
        first = tokens[here - 1] != corpus.at(there - 1)
        here, there = here[first], there[first]
        length = _extended(tokens, corpus, here, there, skip_budget)
        found.append((here[length > SEED], length[length > SEED]))
    here = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in found)])
    length = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in found)])
    # Of the matches that begin at one token the longest covers the others.
    order = np.lexsort((-length, here))
    here, length = here[order], length[order]
    longest = np.concatenate([[True], here[1:] != here[:-1]])[: len(here)]
    here, length = here[longest], length[longest]
    sample = np.searchsorted(starts, here, side="right") - 1
    return Matches(sample, here - starts[sample], length, lengths) if len(here) else Matches(here, here, here, lengths)


def _hashes(tokens: np.ndarray, powers: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """By position, a uint64 hash of the SEED tokens from there on; [len(tokens) - SEED + 1].

    Differences of running sums of mix(token) ODD^place, divided by ODD^place: the same wherever the tokens stand.
    """
    size = max(len(tokens) - SEED + 1, 0)
    sums = np.zeros(len(tokens) + 1, dtype=np.uint64)
    np.cumsum(mixed(tokens.astype(np.uint64) + ODD) * powers[0][: len(tokens)], out=sums[1:])
    return mixed((sums[SEED : SEED + size] - sums[:size]) * powers[1][:size])


def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """ODD and its inverse modulo 2^64 to the powers 0 … size - 1: uint64 [size] each."""
    tables = []
    for base in (int(ODD), pow(int(ODD), -1, 2**64)):
        table = np.ones(1, dtype=np.uint64)
        while len(table) < size:
            table = np.concatenate([table, table * np.uint64(pow(base, len(table), 2**64))])
        tables.append(table[:size])
    return tables[0], tables[1]


def _seeds(tokens: np.ndarray, corpus: CorpusTokens, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (here, there): positions in `tokens` and `corpus` with the same SEED tokens, none of them negative."""
    valid = np.convolve(tokens < 0, np.ones(SEED, dtype=np.int64), mode="valid") == 0 if len(tokens) >= SEED else []
    positions = np.flatnonzero(valid)
    if not len(positions):
        return
    powers = _powers(max(len(tokens), min(batch, len(corpus)) + SEED))
    hashes = _hashes(tokens, powers)[positions]
    order = np.argsort(hashes, kind="stable")
    positions, hashes = positions[order], hashes[order]
    shift = np.uint64(64 - BITMAP_BITS)
    bitmap = np.zeros(1 << BITMAP_BITS, dtype=bool)
    bitmap[hashes >> shift] = True
    for begin in range(0, len(corpus), batch):
        chunk = corpus.read(begin, begin + batch + SEED - 1)
        there = _hashes(chunk, powers)
        hit = np.flatnonzero(bitmap[there >> shift])
        low = np.searchsorted(hashes, there[hit], side="left")
        equal = hashes[np.minimum(low, len(hashes) - 1)] == there[hit]
        hit, low = hit[equal], low[equal]
        counts = np.searchsorted(hashes, there[hit], side="right") - low
        # A seed that is common on both sides gives many alignments: no more than about `batch` of them at a time.
        edges = np.flatnonzero(np.diff(np.cumsum(counts) // batch)) + 1
        for part in np.split(np.arange(len(hit)), edges):
            number = counts[part]
            place = np.repeat(hit[part], number)
            within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
            here = positions[np.repeat(low[part], number) + within]
            same = np.ones(len(here), dtype=bool)
            for step in range(SEED):
                same &= tokens[here + step] == chunk[place + step]
            yield here[same], place[same] + begin


def _extended(tokens: np.ndarray, corpus: CorpusTokens, here: np.ndarray, there: np.ndarray, budget: int) -> np.ndarray:
    """The length of the longest match from each alignment: at most `budget` unlike tokens, the last token alike."""
    length = np.full(len(here), SEED, dtype=np.int64)
    skipped = np.zeros(len(here), dtype=np.int64)
    active = np.arange(len(here))
    place = SEED
    while len(active):
        mine, theirs = tokens[here[active] + place], corpus.at(there[active] + place)
        alike = mine == theirs
        length[active[alike]] = place + 1
        skipped[active[~alike]] += 1
        active = active[(mine >= 0) & (theirs >= 0) & (skipped[active] <= budget)]
        place += 1
    return length


# Recipe 20: the subsets overlap. (name, smallest share, share that it must stay below)
SUBSETS = (("clean", 0.0, 0.2), ("not clean", 0.2, np.inf), ("not dirty", 0.0, 0.8), ("dirty", 0.8, np.inf))


def subset_statistics(shares: np.ndarray, correct: np.ndarray) -> list[dict[str, object]]:
    """What the four subsets of a data set score against the whole: four rows, in the order of SUBSETS.

    `shares` float [samples] from `contaminated_share`, `correct` [samples] in [0, 1] (right or wrong, or a score).
    A row: subset, n, contamination (mean share), mean (score), expected (mu, the whole set's score) and
    z = (mean - mu) / sqrt(mu (1 - mu) / n), the binomial sigma that the published Z values match.
    contamination and mean are None for an empty subset; z also where sigma is 0 (all right or all wrong).
    """
    shares, correct = np.asarray(shares, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if shares.shape != correct.shape or shares.ndim != 1:
        raise TampuError(f"contamination: {shares.shape} shares do not go with {correct.shape} scores; expected one each")
    if len(correct) == 0 or not ((correct >= 0) & (correct <= 1)).all():
        raise TampuError("contamination: the scores must be one number from 0 to 1 a sample, and at least one")
    expected = float(correct.mean())
    rows: list[dict[str, object]] = []
    for subset, low, high in SUBSETS:
        inside = (shares >= low) & (shares < high)
        n = int(inside.sum())
        sigma = sqrt(expected * (1 - expected) / n) if n else 0.0
        mean = float(correct[inside].mean()) if n else None
        rows.append(
            {
                "subset": subset,
                "n": n,
                "contamination": float(shares[inside].mean()) if n else None,
                "mean": mean,
                "expected": expected,
                "z": (mean - expected) / sigma if mean is not None and sigma > 0 else None,
            }
        )
    return rows


def affected(rows: list[dict[str, object]]) -> bool:
    """Whether contamination helped: all four |Z| above 2, the clean subsets worse than the whole, the others better."""
    expected_sign = {"clean": -1, "not clean": 1, "not dirty": -1, "dirty": 1}
    return all(isinstance(z := row["z"], float) and z * expected_sign[str(row["subset"])] > 2 for row in rows)
