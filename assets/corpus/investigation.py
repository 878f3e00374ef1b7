"""What is in the corpus: the investigations of the Llama 2 paper's section 4.1 (recipe section 15), as tables.

Every function takes documents with `source` and `text`, and (but for `lengths`, `repetition` and `sources`) `language`
as language.identify gives it. Rows are given for each source and for "all" of them. `investigate` makes all tables of a
corpus that comes in batches: of each batch it keeps counts, and a few numbers a document.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from assets.corpus.shingles import repeated_share, word_shingles
from assets.corpus.word_lists import IDENTITY_TERMS, PRONOUNS, RUDE_PHRASES, RUDE_WORDS
from resources.errors import TampuError
from resources.parts import in_order
from resources.splits import fraction_of

Terms = Mapping[str, tuple[str, ...]]
Scorer = Callable[[pl.Series], np.ndarray]


@dataclass(frozen=True)
class Measure:
    """`part` of a batch of documents; `table` of the parts of all batches, one below the other."""

    part: Callable[[pl.DataFrame], pl.DataFrame]
    table: Callable[[pl.DataFrame], pl.DataFrame]

    def __call__(self, frame: pl.DataFrame) -> pl.DataFrame:
        return self.table(self.part(frame))


def measures(terms: Terms = IDENTITY_TERMS, scorer: Scorer | None = None, *, toxicity_share: float = 1.0, seed: int = 0) -> dict[str, Measure]:
    """The tables by name. Toxicity is measured on `toxicity_share` of the documents, chosen by a hash of document_id and seed."""
    words = _pronoun_lexicon()
    identities = _identity_lexicon(terms)
    return {
        "pronouns": Measure(partial(_presence, lexicon=words), partial(_shares, lexicon=words, names=PRONOUN_NAMES)),
        "identity_terms": Measure(partial(_presence, lexicon=identities), partial(_shares, lexicon=identities, names=IDENTITY_NAMES)),
        "languages": Measure(_language_counts, languages_of),
        "lengths": Measure(_sizes, _quantiles),
        "repetition": Measure(_repetitions, _repetition_table),
        "sources": Measure(_source_counts, _source_table),
        "toxicity": Measure(
            partial(_line_scores, scorer=scorer or rude_words, threshold=0.5, share=toxicity_share, seed=seed),
            partial(_toxicity_table, threshold=0.5),
        ),
    }


def investigate(batches: Iterable[pl.DataFrame], wanted: Mapping[str, Measure], *, workers: int = 1) -> dict[str, pl.DataFrame]:
    """All tables of documents that come in batches."""
    parts: dict[str, list[pl.DataFrame]] = {name: [] for name in wanted}
    for found in in_order(lambda batch: {name: measure.part(batch) for name, measure in wanted.items()}, batches, workers):
        for name, part in found.items():
            parts[name].append(part)
    return {name: measure.table(pl.concat(parts[name])) for name, measure in wanted.items()}


PRONOUN_NAMES = ("kind", "group", "share_of_kind")
IDENTITY_NAMES = ("axis", "term", "share_of_axis")


def pronouns(frame: pl.DataFrame) -> pl.DataFrame:
    """How many English documents hold a pronoun of each group, by the paper's lists; presence, not frequency, counts.

    Columns: source, kind (gender, person, any), group, documents (with the group), base (English documents),
    share (documents / base), share_of_kind (documents / documents with any group of the kind: the paper's base for
    She, He and Unspecified). Group "any" of a kind has all documents with a group of that kind.
    """
    return measures()["pronouns"](frame)


def _pronoun_lexicon() -> pl.DataFrame:
    return pl.DataFrame(
        [(word, kind, group) for (kind, group), words in PRONOUNS.items() for word in words]
        + [(word, kind, "any") for (kind, _), words in PRONOUNS.items() for word in words]
        + [(word, "any", "any") for words in PRONOUNS.values() for word in words],
        schema=LEXICON,
        orient="row",
    ).unique(maintain_order=True)


def identity_terms(frame: pl.DataFrame, terms: Terms = IDENTITY_TERMS) -> pl.DataFrame:
    """How many English documents name an identity, on the axes of `terms` (a short word list of our own by default).

    The paper uses HolisticBias' 600 descriptors on five axes (see `identity_lists.holistic_bias` for its file); ours are
    single words, the ambiguous ones (straight, white, black, ...) left out as in the paper and each on one axis, so
    shares by axis are lower bounds of the paper's.
    Columns: source, axis, term, documents, base (English documents), share (documents / base), share_of_axis
    (documents / documents with any term of the axis). Term "any" has all documents with a term of the axis.
    """
    return measures(terms)["identity_terms"](frame)


def _identity_lexicon(terms: Terms) -> pl.DataFrame:
    return pl.DataFrame(
        [(word, axis, term) for axis, words in terms.items() for word in words for term in (word, "any")], schema=LEXICON, orient="row"
    )


def languages(frame: pl.DataFrame, *, smallest_share: float = 0.00005) -> pl.DataFrame:
    """Documents by language; below `smallest_share` of a source's documents (the paper's 0.005 %) summed as "other".

    Columns: source, language, documents, share. Largest first within a source.
    """
    return languages_of(_language_counts(frame), smallest_share=smallest_share)


def _language_counts(frame: pl.DataFrame) -> pl.DataFrame:
    _needs(frame, "language")
    return _with_all(frame.select("source", "language")).group_by("source", "language").agg(documents=pl.len().cast(pl.Int64))


def languages_of(counted: pl.DataFrame, *, smallest_share: float = 0.00005) -> pl.DataFrame:
    """`languages` of rows (source, language, documents), which add up."""
    counted = counted.group_by("source", "language").agg(pl.col("documents").sum())
    counted = counted.with_columns(share=pl.col("documents") / pl.col("documents").sum().over("source"))
    named = pl.when(pl.col("share") >= smallest_share).then("language").otherwise(pl.lit("other"))
    summed = counted.group_by("source", named.alias("language")).agg(pl.col("documents").sum())
    shares = summed.with_columns(share=pl.col("documents") / pl.col("documents").sum().over("source"))
    return shares.sort(["source", "documents", "language"], descending=[False, True, False])


def lengths(frame: pl.DataFrame) -> pl.DataFrame:
    """Sizes of documents: source, unit (characters, words, lines), documents, mean, and the quantiles p05 to p95."""
    return _quantiles(_sizes(frame))


def _sizes(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(
        "source",
        characters=pl.col("text").str.len_chars(),
        words=pl.col("text").str.count_matches(r"\S+"),
        lines=pl.col("text").str.count_matches("\n", literal=True) + 1,
    )


def _quantiles(sizes: pl.DataFrame) -> pl.DataFrame:
    value = pl.col("value")
    return (
        _with_all(sizes)
        .unpivot(index="source", variable_name="unit")
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
    return _repetition_table(_repetitions(frame))


def _repetitions(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("source").with_columns(share=pl.Series(repeated_share(word_shingles(frame["text"], 5)), dtype=pl.Float64))


def _repetition_table(shares: pl.DataFrame) -> pl.DataFrame:
    return (
        _with_all(shares)
        .group_by("source")
        .agg(
            documents=pl.len().cast(pl.Int64),
            repeated_5grams_mean=pl.col("share").sort().mean(),
            repeated_5grams_p95=pl.col("share").quantile(0.95, "linear"),
        )
        .sort("source")
    )


def sources(frame: pl.DataFrame) -> pl.DataFrame:
    """Documents, UTF-8 bytes and words by source and split with their shares of the bytes.

    Columns: source, split, documents, bytes, words, share (of the bytes of all rows).
    """
    return _source_table(_source_counts(frame))


def _source_counts(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.group_by("source", "split").agg(
        documents=pl.len().cast(pl.Int64),
        bytes=pl.col("text").str.len_bytes().sum().cast(pl.Int64),
        words=pl.col("text").str.count_matches(r"\S+").sum().cast(pl.Int64),
    )


def _source_table(counted: pl.DataFrame) -> pl.DataFrame:
    summed = counted.group_by("source", "split").agg(pl.col("documents", "bytes", "words").sum())
    return summed.with_columns(share=pl.col("bytes") / pl.col("bytes").sum()).sort("source", "split")


def rude_words(lines: pl.Series) -> np.ndarray:
    """1.0 for lines with a word or phrase of word_lists.RUDE_WORDS and RUDE_PHRASES, else 0.0: float64 [lines]."""
    words = "|".join(RUDE_WORDS)
    pattern = rf"(?i)\b(?:{words})\b|" + "|".join(rf"\b{phrase}\b" for phrase in RUDE_PHRASES)
    return lines.str.contains(pattern).cast(pl.Float64).to_numpy()


def toxicity(frame: pl.DataFrame, scorer: Scorer | None = None, *, threshold: float = 0.5) -> pl.DataFrame:
    """The paper's measure of toxicity over English documents: each line scored, a document the mean of its lines.

    `scorer` gives a score from 0 to 1 a line. The paper's is HateBERT fine-tuned on ToxiGen
    (`assets.corpus.toxicity_model`). The default, `rude_words`, needs no weights and is only what it says: a list of
    mild insults and swear words. It misses hate without such words (of ToxiGen's prompts, several sentences each, it
    marks 20 % of the hateful and none of the neutral) and counts harmless uses ("that test was stupid"): it serves to
    compare sources and versions of a corpus, and is no estimate of the paper's 0.2 %. Nothing is filtered by it.
    Columns: source, documents (English), documents_above (mean >= `threshold`), share_above, documents_any (with a
    line >= `threshold`), share_any, lines, share_of_lines (>= `threshold`), mean (of the documents' means).
    """
    scores = _line_scores(frame, scorer or rude_words, threshold=threshold, share=1.0, seed=0)
    return _toxicity_table(scores, threshold=threshold)


def _line_scores(frame: pl.DataFrame, scorer: Scorer, *, threshold: float, share: float, seed: int) -> pl.DataFrame:
    """By English document: source, mean score of its lines, how many are above, and how many there are."""
    english = _english(frame)
    if share < 1:
        chosen = [fraction_of(document, f"toxicity/{seed}") < share for document in english["document_id"]]
        english = english.filter(pl.Series(chosen, dtype=pl.Boolean))
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
    return (
        lines.with_columns(score=pl.Series(scores))
        .group_by("document", "source", maintain_order=True)
        .agg(
            mean=pl.col("score").mean(),
            above=(pl.col("score") >= threshold).sum().cast(pl.Int64),
            lines=pl.len().cast(pl.Int64),
        )
        .drop("document")
    )


def _toxicity_table(documents: pl.DataFrame, *, threshold: float) -> pl.DataFrame:
    return (
        _with_all(documents)
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


LEXICON = {"word": pl.String, "outer": pl.String, "inner": pl.String}


def _presence(frame: pl.DataFrame, lexicon: pl.DataFrame) -> pl.DataFrame:
    """By source, outer and inner of `lexicon` (LEXICON): English documents that hold any of its words or phrases.

    Rows whose outer is null have the English documents of a source. Words are runs of letters in lower case, so that
    "she's" holds she; a phrase is words next to one another, whatever stands between them.
    """
    frame = _english(frame)
    words = pl.col("text").str.to_lowercase().str.extract_all(r"\pL+")
    numbered = frame.select("source", words=words).with_row_index("document")
    single = lexicon.filter(~pl.col("word").str.contains(" ", literal=True))
    found = [numbered.select("document", "source", word=pl.col("words").list.unique()).explode("word").drop_nulls("word")]
    phrases = lexicon.filter(pl.col("word").str.contains(" ", literal=True))
    if phrases.height:
        padded = pl.concat_str(pl.lit(" "), pl.col("words").list.join(" "), pl.lit(" "))
        hits = padded.str.extract_many([f" {phrase} " for phrase in phrases["word"].unique()], overlapping=True)
        spoken = numbered.select("document", "source", word=hits).explode("word").drop_nulls("word")
        found.append(spoken.with_columns(pl.col("word").str.strip_chars(" ")))
    hits_by_document = pl.concat(found).join(pl.concat([single, phrases]), on="word").unique(["document", "outer", "inner"])
    counted = _with_all(hits_by_document.select("source", "outer", "inner")).group_by("source", "outer", "inner")
    bases = _with_all(frame.select("source")).group_by("source").agg(documents=pl.len().cast(pl.Int64))
    base_rows = bases.select("source", pl.lit(None, pl.String).alias("outer"), pl.lit(None, pl.String).alias("inner"), "documents")
    return pl.concat([base_rows, counted.agg(documents=pl.len().cast(pl.Int64))])


def _shares(counts: pl.DataFrame, lexicon: pl.DataFrame, names: tuple[str, str, str]) -> pl.DataFrame:
    """The table of `_presence` counts, which add up. All pairs of the lexicon appear for all sources, with 0 where nothing was found."""
    outer, inner, within = names
    summed = counts.group_by("source", "outer", "inner").agg(pl.col("documents").sum())
    bases = summed.filter(pl.col("outer").is_null()).select("source", base="documents")
    pairs = lexicon.select("outer", "inner").unique(maintain_order=True).with_row_index("order")
    full = (
        bases.join(pairs, how="cross").join(summed, on=["source", "outer", "inner"], how="left").with_columns(pl.col("documents").fill_null(0))
    )
    any_of_it = full.filter(pl.col("inner") == "any").select("source", "outer", of_any="documents")
    return (
        full.join(any_of_it, on=["source", "outer"], how="left")
        .sort("source", "order")
        .select(
            "source",
            pl.col("outer").alias(outer),
            pl.col("inner").alias(inner),
            "documents",
            "base",
            share=pl.col("documents") / pl.col("base"),
            **{within: pl.when(pl.col("of_any") > 0).then(pl.col("documents") / pl.col("of_any"))},
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
