"""Quality rules in the manner of C4 (arXiv:1910.10683, 2.2) and Gopher (arXiv:2112.11446, A1.1), fit for chat lines.

Llama 2 publishes no rules. Gopher's numbers are for web pages: they would drop short, cheerful, repetitive talk, so the
default limits here are looser (our choice). `WEB` has the published numbers for a source of web pages.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl

from assets.corpus.characters import ALPHANUMERIC, LETTER, Characters, hash_of
from assets.corpus.shingles import repeated_share, shingles_of, top_share
from resources.errors import TampuError

# Gopher's eight. Most real chats of 50 to 100 words that lack seven of them are good talk, so longer ones only.
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
STOP_WORDS_FROM = 100

BULLETS = "•‣▪◦●*-–"
# C4's marks and their closing quotes; the ellipsis counts as one, as three points do.
TERMINAL = ".!?…\"'”’"


@dataclass(frozen=True)
class Quality:
    """Limits of the rules; words are runs of anything but white space, lines those that hold anything.

    - `words_min`, `words_max`: how many words (Gopher 50 to 100,000; a chat may be a question and its answer);
    - `mean_word_length_min`, `_max`: letters a word on average (Gopher 3 to 10);
    - `longest_word_max`: characters of the longest word (1,000 in C4's code; in chats, mashed keys and links);
    - `symbol_share_max`: share of the characters, white space aside, that are neither letters, marks nor digits (Gopher
      counts # and ... only);
    - `alphabetic_words_min`: share of the words that hold a letter (Gopher 0.8);
    - `repeated_lines_max`: share of the characters that stand in lines seen before in the document (Gopher 0.2);
    - `repeated_ngrams_max`: share of the word 5-grams seen before in the document (Gopher 0.15 of the characters);
    - `stop_words_min`: so many different ones of eight common words, asked of English texts of 100 words on (Gopher 2);
    - `bullet_lines_max`: share of the lines that begin with a bullet (Gopher 0.9);
    - `ellipsis_lines_max`: share of the lines that end in an ellipsis (Gopher 0.3; people end chat lines so, so it is off);
    - `terminal_punctuation_min`: share of the lines that end in a terminal mark (C4 drops other lines; FineWeb,
      arXiv:2406.17557, asks for 0.12; chat lines end in anything, so it is off);
    - `top_2grams_max`, `top_3grams_max`, `top_4grams_max`: share of the words in the most frequent n-gram (Gopher 0.20,
      0.18, 0.16 of the characters; off for chats). A rule whose limit is 1 is off and not measured.
    """

    words_min: int = 5
    words_max: int = 10_000_000
    mean_word_length_min: float = 2.0
    mean_word_length_max: float = 10.0
    longest_word_max: int = 100
    symbol_share_max: float = 0.25
    alphabetic_words_min: float = 0.7
    repeated_lines_max: float = 0.3
    repeated_ngrams_max: float = 0.3
    stop_words_min: int = 2
    bullet_lines_max: float = 0.9
    ellipsis_lines_max: float = 1.0
    terminal_punctuation_min: float = 0.0
    top_2grams_max: float = 1.0
    top_3grams_max: float = 1.0
    top_4grams_max: float = 1.0

    def __post_init__(self) -> None:
        for name in SHARES:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise TampuError(f"quality filter: {name} is {value}; expected a share from 0 to 1")
        if not 0 <= self.mean_word_length_min <= self.mean_word_length_max:
            raise TampuError(
                f"quality filter: mean_word_length_min {self.mean_word_length_min} and mean_word_length_max "
                f"{self.mean_word_length_max} must be in order and not below 0"
            )
        if not 0 <= self.stop_words_min <= len(STOP_WORDS):
            raise TampuError(f"quality filter: stop_words_min is {self.stop_words_min}; expected 0 to {len(STOP_WORDS)}")
        if self.words_max < self.words_min:
            raise TampuError(f"quality filter: words_max is {self.words_max}, below words_min {self.words_min}")
        for name in ("words_min", "longest_word_max"):
            if getattr(self, name) < 0:
                raise TampuError(f"quality filter: {name} is {getattr(self, name)}; expected 0 or more")


SHARES = (
    "symbol_share_max",
    "alphabetic_words_min",
    "repeated_lines_max",
    "repeated_ngrams_max",
    "bullet_lines_max",
    "ellipsis_lines_max",
    "terminal_punctuation_min",
    "top_2grams_max",
    "top_3grams_max",
    "top_4grams_max",
)

CHAT = Quality()
WEB = Quality(
    words_min=50,
    words_max=100_000,
    mean_word_length_min=3.0,
    longest_word_max=1000,
    alphabetic_words_min=0.8,
    repeated_lines_max=0.2,
    repeated_ngrams_max=0.15,
    ellipsis_lines_max=0.3,
    terminal_punctuation_min=0.12,
    top_2grams_max=0.20,
    top_3grams_max=0.18,
    top_4grams_max=0.16,
)
PRESETS = {"chat": CHAT, "web": WEB}


def quality_of(preset: str, limits: dict[str, float]) -> Quality:
    """A preset with some limits changed. TampuError for an unknown limit."""
    known = [limit.name for limit in fields(Quality)]
    for name in limits:
        if name not in known:
            raise TampuError(f"quality filter: there is no limit {name!r}; the limits are {', '.join(known)}")
    return replace(PRESETS[preset], **limits)  # type: ignore[arg-type]


# In the order in which they are applied: a document is charged to the first rule that it breaks.
RULES = (
    "words",
    "mean_word_length",
    "longest_word",
    "symbol_share",
    "alphabetic_words",
    "repeated_lines",
    "repeated_ngrams",
    "stop_words",
    "bullet_lines",
    "ellipsis_lines",
    "terminal_punctuation",
    "top_2grams",
    "top_3grams",
    "top_4grams",
)


def measure(frame: pl.DataFrame, limits: Quality = CHAT, characters: Characters | None = None) -> pl.DataFrame:
    """One column a rule of RULES with the number that it judges (float64), in the frame's order.

    Needs the columns text and language; `characters` are those of text, where they are at hand. A number is null where
    its rule does not apply: stop_words to short or foreign texts, shares of no words or lines, rules that `limits` turns off.
    """
    found = Characters.of(frame["text"]) if characters is None else characters
    visible, words, lines = found.visible, found.words, found.lines
    number, line_number, word_number = np.diff(visible.of), np.diff(lines.of), np.diff(words.of)
    shown = visible.per_text(visible.length)
    letters = np.concatenate([[0], np.cumsum((found.kind & LETTER) > 0, dtype=np.int64)])
    with_letter = letters[visible.end] > letters[visible.start]
    word_hashes, line_hashes = found.word_hashes, found.line_hashes
    english = frame["language"].to_numpy() == "en"
    stop_words = sum((words.per_text(word_hashes == hash_of(word)) > 0).astype(np.int64) for word in STOP_WORDS)
    first, last = found.code[lines.start], found.code[lines.end - 1]
    points = (last == ord(".")) & (found.code[np.maximum(lines.end - 2, 0)] == ord(".")) & (found.code[np.maximum(lines.end - 3, 0)] == ord("."))

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)

    def off(name: str) -> bool:
        return getattr(limits, name) >= 1

    nothing = np.full(len(found), np.nan)
    measured: dict[str, np.ndarray] = {
        "words": number.astype(np.float64),
        "mean_word_length": share(shown, number),
        "longest_word": _longest(visible.length, visible.of),
        "symbol_share": share(shown - found.count(ALPHANUMERIC), shown),
        "alphabetic_words": share(visible.per_text(with_letter), number),
        "repeated_lines": _repeated_lines(line_hashes, lines.length, lines.of),
        "repeated_ngrams": repeated_share(shingles_of(word_hashes, words, 5)),
        "stop_words": np.where(english & (number >= STOP_WORDS_FROM), stop_words, np.nan),
        "bullet_lines": share(lines.per_text(np.isin(first, [ord(mark) for mark in BULLETS])), line_number),
        "ellipsis_lines": share(lines.per_text(points | (last == ord("…"))), line_number),
        "terminal_punctuation": share(lines.per_text(np.isin(last, [ord(mark) for mark in TERMINAL])), line_number),
    }
    for size in (2, 3, 4):
        skip = off(f"top_{size}grams_max")
        measured[f"top_{size}grams"] = nothing if skip else top_share(shingles_of(word_hashes, words, size), size, word_number)
    return pl.DataFrame({rule: measured[rule] for rule in RULES}).with_columns(pl.all().fill_nan(None))


def broken_rule(measured: pl.DataFrame, limits: Quality) -> pl.Series:
    """By document, the first rule of RULES that it breaks, or null."""
    broken = {
        "words": ~pl.col("words").is_between(limits.words_min, limits.words_max),
        "mean_word_length": ~pl.col("mean_word_length").is_between(limits.mean_word_length_min, limits.mean_word_length_max),
        "alphabetic_words": pl.col("alphabetic_words") < limits.alphabetic_words_min,
        "stop_words": pl.col("stop_words") < limits.stop_words_min,
        "terminal_punctuation": pl.col("terminal_punctuation") < limits.terminal_punctuation_min,
    }
    first = pl.coalesce(
        pl.when(broken[rule] if rule in broken else pl.col(rule) > getattr(limits, f"{rule}_max")).then(pl.lit(rule)) for rule in RULES
    )
    return measured.select(rule=first)["rule"]


def _longest(lengths: np.ndarray, of: np.ndarray) -> np.ndarray:
    """By text, the largest of its `lengths` [spans]: float64 [d], not-a-number for a text without spans."""
    longest = np.full(len(of) - 1, np.nan)
    some = np.flatnonzero(np.diff(of) > 0)
    if len(some):
        longest[some] = np.maximum.reduceat(lengths, of[some])
    return longest


def _repeated_lines(hashes: np.ndarray, lengths: np.ndarray, of: np.ndarray) -> np.ndarray:
    """By text, the share of its lines' characters in lines equal to an earlier one (case and edges aside): float64 [d]."""
    document = np.repeat(np.arange(len(of) - 1), np.diff(of))
    order = np.lexsort((np.arange(len(hashes)), hashes, document))
    again = np.zeros(len(hashes), dtype=bool)
    same = (hashes[order][1:] == hashes[order][:-1]) & (document[order][1:] == document[order][:-1])
    again[order[1:][same]] = True
    total = np.bincount(document, weights=lengths, minlength=len(of) - 1)
    repeated = np.bincount(document, weights=lengths * again, minlength=len(of) - 1)
    return np.divide(repeated, total, out=np.full(len(total), np.nan), where=total > 0)
