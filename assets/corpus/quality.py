"""Quality rules in the manner of C4 (arXiv:1910.10683, 2.2) and Gopher (arXiv:2112.11446, A1.1), fit for chat lines.

Llama 2 publishes no rules. Gopher's numbers are for web pages: they would drop short, cheerful, repetitive talk, so the
limits here are looser (our choice), and three of Gopher's rules are left out: bullet lists, ellipses at line ends, and
100,000 words at most.
"""

from dataclasses import dataclass

import polars as pl

from assets.corpus.shingles import repeated_share, word_shingles
from resources.errors import TampuError

# Gopher's eight. Most real chats of 50 to 100 words that lack seven of them are good talk, so longer ones only.
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
STOP_WORDS_FROM = 100


@dataclass(frozen=True)
class Quality:
    """Limits of the rules; words are runs of anything but white space.

    - `words_min`: at least so many words (Gopher 50; a chat may be a question and its answer);
    - `mean_word_length_min`, `_max`: letters a word on average (Gopher 3 to 10);
    - `longest_word_max`: characters of the longest word (1,000 in C4's code; in chats, mashed keys and links);
    - `symbol_share_max`: share of the characters, white space aside, that are neither letters, marks nor digits (Gopher
      counts # and ... only);
    - `alphabetic_words_min`: share of the words that hold a letter (Gopher 0.8);
    - `repeated_lines_max`: share of the characters that stand in lines seen before in the document (Gopher 0.2);
    - `repeated_ngrams_max`: share of the word 5-grams seen before in the document (Gopher 0.15 of the characters);
    - `stop_words_min`: so many different ones of eight common words, asked of English texts of 100 words on (Gopher 2).
    """

    words_min: int = 5
    mean_word_length_min: float = 2.0
    mean_word_length_max: float = 10.0
    longest_word_max: int = 100
    symbol_share_max: float = 0.25
    alphabetic_words_min: float = 0.7
    repeated_lines_max: float = 0.3
    repeated_ngrams_max: float = 0.3
    stop_words_min: int = 2

    def __post_init__(self) -> None:
        for name in ("symbol_share_max", "alphabetic_words_min", "repeated_lines_max", "repeated_ngrams_max"):
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
        for name in ("words_min", "longest_word_max"):
            if getattr(self, name) < 0:
                raise TampuError(f"quality filter: {name} is {getattr(self, name)}; expected 0 or more")


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
)


def measure(frame: pl.DataFrame) -> pl.DataFrame:
    """One column a rule of RULES with the number that it judges, in the frame's order.

    Needs the columns text and language. stop_words is null where the rule does not apply.
    """
    text = pl.col("text")
    words = text.str.extract_all(r"\S+")
    lengths = words.list.eval(pl.element().str.len_chars())
    visible = text.str.count_matches(r"\S")
    lower = text.str.to_lowercase()
    stop_words = pl.sum_horizontal(lower.str.contains(rf"\b{word}\b").cast(pl.Int32) for word in STOP_WORDS)
    measured = frame.select(
        words=words.list.len().cast(pl.Float64),
        mean_word_length=lengths.list.mean(),
        longest_word=lengths.list.max().cast(pl.Float64),
        symbol_share=text.str.count_matches(r"[^\pL\pM\pN\s]") / visible,
        alphabetic_words=words.list.eval(pl.element().str.contains(r"\pL")).list.mean(),
        stop_words=stop_words.cast(pl.Float64),
        language="language",
    )
    return measured.with_columns(
        repeated_lines=_repeated_lines(frame["text"]),
        repeated_ngrams=pl.Series(repeated_share(word_shingles(frame["text"], 5)), dtype=pl.Float64),
        stop_words=pl.when((pl.col("language") == "en") & (pl.col("words") >= STOP_WORDS_FROM)).then("stop_words"),
    ).select(pl.col(rule).fill_nan(None) for rule in RULES)


def broken_rule(measured: pl.DataFrame, limits: Quality) -> pl.Series:
    """By document, the first rule of RULES that it breaks, or null."""
    broken = {
        "words": pl.col("words") < limits.words_min,
        "mean_word_length": ~pl.col("mean_word_length").is_between(limits.mean_word_length_min, limits.mean_word_length_max),
        "longest_word": pl.col("longest_word") > limits.longest_word_max,
        "symbol_share": pl.col("symbol_share") > limits.symbol_share_max,
        "alphabetic_words": pl.col("alphabetic_words") < limits.alphabetic_words_min,
        "repeated_lines": pl.col("repeated_lines") > limits.repeated_lines_max,
        "repeated_ngrams": pl.col("repeated_ngrams") > limits.repeated_ngrams_max,
        "stop_words": pl.col("stop_words") < limits.stop_words_min,
    }
    first = pl.coalesce(pl.when(broken[rule]).then(pl.lit(rule)) for rule in RULES)
    return measured.select(rule=first)["rule"]


def _repeated_lines(texts: pl.Series) -> pl.Series:
    """By text, the share of its characters that stand in lines equal to an earlier line (case and edges aside)."""
    lines = (
        texts.alias("line").to_frame().with_row_index("document")
        .with_columns(pl.col("line").str.to_lowercase().str.split("\n"))
        .explode("line")
        .with_columns(pl.col("line").str.strip_chars())
        .with_columns(length=pl.col("line").str.len_chars(), again=~pl.struct("document", "line").is_first_distinct())
    )  # fmt: skip
    shares = lines.group_by("document").agg(share=pl.col("length").filter(pl.col("again")).sum() / pl.col("length").sum())
    return shares.sort("document")["share"]
