"""Lines that many documents have: navigation, boilerplate, sign-offs. They stay in one document and leave the others.

CCNet (arXiv:1911.00359, 3.1) removes every paragraph that any document had before. That tears running text apart where
people quote, so a line must be long and must stand in several documents here (our choice).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from assets.corpus.characters import Characters
from resources.errors import TampuError

RECORD = np.dtype([("hash", "<u8"), ("document", "<u4")])


@dataclass(frozen=True)
class RepeatedLines:
    """A line of at least `words_min` words that stands in more than `documents_max` documents stays in the first of them
    (by split, then by id) and goes from the others. Sources whose lines are turns of a dialogue are left alone."""

    words_min: int = 8
    documents_max: int = 10

    def __post_init__(self) -> None:
        for name in ("words_min", "documents_max"):
            if getattr(self, name) < 1:
                raise TampuError(f"repeated lines: {name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True)
class Repeated:
    """The lines that repeat: `hash` uint64 sorted, and `keeper` uint32, the number of the document that keeps each."""

    hash: np.ndarray
    keeper: np.ndarray


def line_records(characters: Characters, numbers: np.ndarray, settings: RepeatedLines) -> np.ndarray:
    """The long lines of texts whose documents have the `numbers` [d]: RECORD [lines], each line of a document once."""
    lines = characters.lines
    starts = characters.visible.start
    words = np.searchsorted(starts, lines.end) - np.searchsorted(starts, lines.start)
    long = words >= settings.words_min
    records = np.empty(int(long.sum()), dtype=RECORD)
    records["hash"] = characters.line_hashes[long]
    records["document"] = numbers[np.repeat(np.arange(len(characters)), np.diff(lines.of))[long]]
    return np.unique(records)


def repeated(records: np.ndarray, alive: np.ndarray, rank: np.ndarray, settings: RepeatedLines) -> Repeated:
    """The repeating lines among RECORD rows that hold all documents of each hash they have. `alive` bool and `rank` int8
    [documents]: only living documents count, and the lowest rank keeps a line."""
    records = records[alive[records["document"]]]
    order = np.lexsort((records["document"], rank[records["document"]], records["hash"]))
    records = records[order]
    starts = np.flatnonzero(np.concatenate([[True], records["hash"][1:] != records["hash"][:-1]])) if len(records) else np.zeros(0, np.int64)
    many = np.diff(np.concatenate([starts, [len(records)]])) > settings.documents_max
    return Repeated(records["hash"][starts[many]], records["document"][starts[many]])


def joined(parts: Sequence[Repeated]) -> Repeated:
    """Several disjoint sets of lines as one, sorted."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *(part.hash for part in parts)])
    keepers = np.concatenate([np.zeros(0, np.uint32), *(part.keeper for part in parts)])
    order = np.argsort(hashes)
    return Repeated(hashes[order], keepers[order])


def without_repeated(texts: pl.Series, numbers: np.ndarray, lines: Repeated) -> tuple[pl.Series, np.ndarray]:
    """The texts without the lines that another document keeps, and the share of the lines' characters that went: float64 [d]."""
    shares = np.zeros(len(texts))
    if not len(lines.hash) or not len(texts):
        return texts, shares
    characters = Characters.of(texts)
    found = characters.lines
    hashes = characters.line_hashes
    place = np.minimum(np.searchsorted(lines.hash, hashes), len(lines.hash) - 1)
    document = np.repeat(np.arange(len(characters)), np.diff(found.of))
    gone = (lines.hash[place] == hashes) & (lines.keeper[place] != numbers[document])
    if not gone.any():
        return texts, shares
    changed = texts.to_list()
    total = found.per_text(found.length)
    taken = found.per_text(found.length * gone)
    for index in np.unique(document[gone]):
        text, start = changed[index], int(characters.offsets[index])
        mine = slice(found.of[index], found.of[index + 1])
        cut = [(int(a) - start, int(b) - start + 1) for a, b in zip(found.start[mine][gone[mine]], found.end[mine][gone[mine]], strict=True)]
        edges = [0, *(min(edge, len(text)) for span in cut for edge in span), len(text)]  # with their line breaks
        kept = "".join(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
        changed[index] = kept
        shares[index] = taken[index] / total[index]
    cleaned = pl.Series(texts.name, changed, dtype=pl.String).str.replace_all(r"\n{3,}", "\n\n").str.strip_chars()
    return cleaned, shares
