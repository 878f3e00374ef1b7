"""What is in the corpus: the investigations of the Llama 2 paper's section 4.1 (recipe section 15), as tables.

Every function takes documents with `source` and `text`, and (but for `lengths`, `repetition` and `sources`) `language`
as language.identify gives it. Rows are given for each source and for "all" of them.
"""

from collections.abc import Callable

import numpy as np
import polars as pl

from assets.corpus.shingles import repeated_share, word_shingles
from assets.corpus.word_lists import IDENTITY_TERMS, PRONOUNS, RUDE_PHRASES, RUDE_WORDS
from resources.errors import TampuError


def pronouns(frame: pl.DataFrame) -> pl.DataFrame:
    """How many English documents hold a pronoun of each group, by the paper's lists; presence, not frequency, counts.

    Columns: source, kind (gender, person, any), group, documents (with the group), base (English documents),
    share (documents / base), share_of_kind (documents / documents with any group of the kind: the paper's base for
    She, He and Unspecified). Group "any" of a kind has all documents with a group of that kind.
    """
    english = _english(frame)
    lexicon = pl.DataFrame(
        [(word, kind, group) for (kind, group), words in PRONOUNS.items() for word in words]
        + [(word, kind, "any") for (kind, _), words in PRONOUNS.items() for word in words]
        + [(word, "any", "any") for words in PRONOUNS.values() for word in words],
        schema={"word": pl.String, "kind": pl.String, "group": pl.String},
        orient="row",
    ).unique(maintain_order=True)
    return _presence(english, lexicon, "kind", "group").rename({"share_within": "share_of_kind"})


def identity_terms(frame: pl.DataFrame) -> pl.DataFrame:
    """How many English documents name an identity, on five axes, by a short word list of our own.

    The paper uses HolisticBias' 600 descriptors on these axes; ours (word_lists.IDENTITY_TERMS) are single words, the
    ambiguous ones (straight, white, black, ...) left out as in the paper and each on one axis, so shares by axis are
    lower bounds of the paper's.
    Columns: source, axis, term, documents, base (English documents), share (documents / base), share_of_axis
    (documents / documents with any term of the axis). Term "any" has all documents with a term of the axis.
    """
    english = _english(frame)
    lexicon = pl.DataFrame(
        [(word, axis, term) for axis, words in IDENTITY_TERMS.items() for word in words for term in (word, "any")],
        schema={"word": pl.String, "axis": pl.String, "term": pl.String},
        orient="row",
    )
    return _presence(english, lexicon, "axis", "term").rename({"share_within": "share_of_axis"})


def languages(frame: pl.DataFrame, *, smallest_share: float = 0.00005) -> pl.DataFrame:
    """Documents by language; below `smallest_share` of a source's documents (the paper's 0.005 %) summed as "other".

    Columns: source, language, documents, share. Largest first within a source.
    """
    _needs(frame, "language")
    both = _with_all(frame.select("source", "language"))
    counted = both.group_by("source", "language").agg(documents=pl.len().cast(pl.Int64))
    counted = counted.with_columns(share=pl.col("documents") / pl.col("documents").sum().over("source"))
    named = pl.when(pl.col("share") >= smallest_share).then("language").otherwise(pl.lit("other"))
    summed = counted.group_by("source", named.alias("language")).agg(pl.col("documents", "share").sum())
    return summed.sort(["source", "documents", "language"], descending=[False, True, False])


def lengths(frame: pl.DataFrame) -> pl.DataFrame:
    """Sizes of documents: source, unit (characters, words, lines), documents, mean, and the quantiles p05 to p95."""
    sized = _with_all(
        frame.select(
            "source",
            characters=pl.col("text").str.len_chars(),
            words=pl.col("text").str.count_matches(r"\S+"),
            lines=pl.col("text").str.count_matches("\n", literal=True) + 1,
        )
    )
    value = pl.col("value")
    return (
        sized.unpivot(index="source", variable_name="unit")
        .group_by("source", "unit")
        .agg(
            documents=pl.len().cast(pl.Int64),
            mean=value.mean(),
            **{f"p{q:02d}": value.quantile(q / 100, "linear") for q in (5, 25, 50, 75, 95)},
        )
        .sort("source", "unit")
    )


def repetition(frame: pl.DataFrame) -> pl.DataFrame:
    """How much documents repeat themselves, as the mean and 95th centile over documents.

    Columns: source, documents, repeated_5grams_mean, repeated_5grams_p95: the share of a document's word 5-grams that
    came before in it.
    """
    share = repeated_share(word_shingles(frame["text"], 5))
    both = _with_all(frame.select("source").with_columns(share=pl.Series(share, dtype=pl.Float64)))
    return (
        both.group_by("source")
        .agg(
            documents=pl.len().cast(pl.Int64),
            repeated_5grams_mean=pl.col("share").mean(),
            repeated_5grams_p95=pl.col("share").quantile(0.95, "linear"),
        )
        .sort("source")
    )


def sources(frame: pl.DataFrame) -> pl.DataFrame:
    """Documents, UTF-8 bytes and words by source and split with their shares of the bytes.

    Columns: source, split, documents, bytes, words, share (of the bytes of all rows).
    """
    return (
        frame.group_by("source", "split")
        .agg(
            documents=pl.len().cast(pl.Int64),
            bytes=pl.col("text").str.len_bytes().sum().cast(pl.Int64),
            words=pl.col("text").str.count_matches(r"\S+").sum().cast(pl.Int64),
        )
        .with_columns(share=pl.col("bytes") / pl.col("bytes").sum())
        .sort("source", "split")
    )


Scorer = Callable[[pl.Series], np.ndarray]


def rude_words(lines: pl.Series) -> np.ndarray:
    """1.0 for lines with a word or phrase of word_lists.RUDE_WORDS and RUDE_PHRASES, else 0.0: float64 [lines]."""
    words = "|".join(RUDE_WORDS)
    pattern = rf"(?i)\b(?:{words})\b|" + "|".join(rf"\b{phrase}\b" for phrase in RUDE_PHRASES)
    return lines.str.contains(pattern).cast(pl.Float64).to_numpy()


def toxicity(frame: pl.DataFrame, scorer: Scorer = rude_words, *, threshold: float = 0.5) -> pl.DataFrame:
    """The paper's measure of toxicity over English documents: each line scored, a document the mean of its lines.

    `scorer` gives a score from 0 to 1 a line. The paper's is HateBERT fine-tuned on ToxiGen; it can be passed in. The
    default needs no weights and is only what it says: a list of mild insults and swear words. It misses hate without
    such words (of ToxiGen's prompts, several sentences each, it marks 20 % of the hateful and none of the neutral) and
    counts harmless uses ("that test was stupid"): it serves to compare sources and versions of a corpus, and is no
    estimate of the paper's 0.2 %. Nothing is filtered by it.
    Columns: source, documents (English), documents_above (mean >= `threshold`), share_above, documents_any (with a
    line >= `threshold`), share_any, lines, share_of_lines (>= `threshold`), mean (of the documents' means).
    """
    english = _english(frame)
    lines = (
        english.select("source", "text")
        .with_row_index("document")
        .with_columns(line=pl.col("text").str.split("\n"))
        .drop("text")
        .explode("line")
        .filter(pl.col("line").str.contains(r"\S"))
    )
    scores = np.asarray(scorer(lines["line"]), dtype=np.float64)
    if scores.shape != (lines.height,) or not ((scores >= 0) & (scores <= 1)).all():
        raise TampuError(f"toxicity: the scorer gave {scores.shape} scores for {lines.height} lines, or one outside 0 to 1")
    documents = (
        lines.with_columns(score=pl.Series(scores))
        .group_by("document", "source")
        .agg(
            mean=pl.col("score").mean(),
            above=(pl.col("score") >= threshold).sum().cast(pl.Int64),
            lines=pl.len().cast(pl.Int64),
        )
    )
    return (
        _with_all(documents.drop("document"))
        .group_by("source")
        .agg(
            documents=pl.len().cast(pl.Int64),
            documents_above=(pl.col("mean") >= threshold).sum().cast(pl.Int64),
            share_above=(pl.col("mean") >= threshold).mean(),
            documents_any=(pl.col("above") > 0).sum().cast(pl.Int64),
            share_any=(pl.col("above") > 0).mean(),
            lines=pl.col("lines").sum(),
            share_of_lines=pl.col("above").sum() / pl.col("lines").sum(),
            mean=pl.col("mean").sort().mean(),
        )
        .sort("source")
    )


def _presence(frame: pl.DataFrame, lexicon: pl.DataFrame, outer: str, inner: str) -> pl.DataFrame:
    """By source, `outer` and `inner` of `lexicon` (word, outer, inner): documents that hold any of its words.

    All pairs of the lexicon appear for all sources, with 0 where nothing was found. Words are runs of letters in lower
    case, so that "she's" holds she.
    """
    words = (
        frame.select("source", word=pl.col("text").str.to_lowercase().str.extract_all(r"\pL+").list.unique())
        .with_row_index("document")
        .explode("word")
    )
    hits = words.join(lexicon, on="word").unique(["document", outer, inner])
    counted = _with_all(hits.select("source", outer, inner)).group_by("source", outer, inner)
    bases = _with_all(frame.select("source")).group_by("source").agg(base=pl.len().cast(pl.Int64))
    pairs = lexicon.select(outer, inner).unique(maintain_order=True).with_row_index("order")
    full = (
        bases.join(pairs, how="cross")
        .join(counted.agg(documents=pl.len().cast(pl.Int64)), on=["source", outer, inner], how="left")
        .with_columns(pl.col("documents").fill_null(0))
    )
    any_of_it = full.filter(pl.col(inner) == "any").select("source", outer, of_any="documents")
    return (
        full.join(any_of_it, on=["source", outer], how="left")
        .sort("source", "order")
        .select(
            "source",
            outer,
            inner,
            "documents",
            "base",
            share=pl.col("documents") / pl.col("base"),
            share_within=pl.when(pl.col("of_any") > 0).then(pl.col("documents") / pl.col("of_any")),
        )
    )


def _english(frame: pl.DataFrame) -> pl.DataFrame:
    _needs(frame, "language")
    return frame.filter(pl.col("language") == "en")


def _needs(frame: pl.DataFrame, column: str) -> None:
    if column not in frame.columns:
        raise TampuError(f"The documents have no column {column!r}: pass them through assets.corpus.language.identify first")


def _with_all(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([frame, frame.with_columns(source=pl.lit("all", pl.String))])
