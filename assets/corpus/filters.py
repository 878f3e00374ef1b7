"""The chain that turns documents into the filtered corpus. What is taken out is kept, by filter, with the reason."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import polars as pl

from assets.corpus.duplicates import NearDuplicates, exact_duplicates, near_duplicates
from assets.corpus.language import UNKNOWN, identify
from assets.corpus.personal_data import PersonalData, redact_frame
from assets.corpus.quality import RULES, Quality, broken_rule, measure
from resources.errors import TampuError

COLUMNS = ("document_id", "source", "text", "factual", "split", "group")

REJECT_SCHEMA: dict[str, type[pl.DataType]] = {
    "document_id": pl.String,
    "source": pl.String,
    "split": pl.String,
    "filter": pl.String,
    "value": pl.Float64,
    "detail": pl.String,
    "text": pl.String,
}
COUNT_SCHEMA: dict[str, type[pl.DataType]] = {
    "source": pl.String,
    "filter": pl.String,
    "documents_in": pl.Int64,
    "documents_out": pl.Int64,
    "bytes_in": pl.Int64,
    "bytes_out": pl.Int64,
}


@dataclass(frozen=True)
class FilterSettings:
    """`languages` (ISO 639 codes) are kept, and so are texts whose language is unknown: below `language_threshold`
    are the greetings of a few words, not foreign texts. The other fields belong to the steps they name."""

    languages: tuple[str, ...] = ("en",)
    language_threshold: float = 0.5
    language_characters: int = 500
    quality: Quality = field(default_factory=Quality)
    near_duplicates: NearDuplicates = field(default_factory=NearDuplicates)
    personal_data: PersonalData = field(default_factory=PersonalData)

    def __post_init__(self) -> None:
        if not self.languages:
            raise TampuError("language filter: languages is empty; name at least one ISO 639 code, such as 'en'")
        if not 0 <= self.language_threshold <= 1:
            raise TampuError(f"language filter: language_threshold is {self.language_threshold}; expected 0 to 1")
        if self.language_characters < 1:
            raise TampuError(f"language filter: language_characters is {self.language_characters}; expected at least 1")


@dataclass(frozen=True)
class Filtered:
    """What the chain gives.

    `frame`: the documents kept, sorted by document_id, with `language` and `language_probability` added.
    `rejects` (REJECT_SCHEMA): every document taken out, once, with the filter that did it, the number it judged
    (`value`), what it is a duplicate of or which language it is in (`detail`), and its text as that filter saw it.
    `counts` (COUNT_SCHEMA): a row a source and filter, in the chain's order; documents_in = documents_out + rejects.
    `personal_data`: spans replaced, by source and type (personal_data.COUNT_SCHEMA).
    """

    frame: pl.DataFrame
    rejects: pl.DataFrame
    counts: pl.DataFrame
    personal_data: pl.DataFrame


def normalise(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with texts in Unicode form NFC and plain white space.

    Control and invisible formatting characters go (zero-width joiners, which emoji and Indic scripts need, stay); line
    and paragraph separators become line breaks; other runs of white space become one space; lines lose the space at
    their edges; no more than one blank line follows another text line. The result may be empty.
    """
    text = (
        pl.col("text")
        .str.replace_all(r"\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", "\n")
        .str.replace_all(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]", "")
        .str.normalize("NFC")
        .str.replace_all(r"[\s\x1f&&[^\n]]+", " ")
        .str.replace_all(r" ?\n ?", "\n")
        .str.replace_all(r"\n{3,}", "\n\n")
        .str.strip_chars()
    )
    return frame.with_columns(text=text)


def apply_filters(frame: pl.DataFrame, settings: FilterSettings = FilterSettings()) -> Filtered:
    """The whole chain in order: normalise, language, the quality rules, exact and near duplicates, personal data.

    The result does not depend on the order of the rows. TampuError if a column is missing or an id comes twice.
    """
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise TampuError(f"The documents have no column {missing[0]!r}; expected {', '.join(COLUMNS)}")
    repeated = frame.filter(pl.col("document_id").is_duplicated())
    if repeated.height:
        raise TampuError(f"The document_id {repeated['document_id'].min()!r} comes more than once: ids must be unique")

    chain = _Chain(frame.select(COLUMNS).sort("document_id"))
    chain.step("normalise", changed=normalise(chain.frame), reject=lambda f: f.filter(pl.col("text") == ""))

    chain.frame = identify(chain.frame, threshold=settings.language_threshold, characters=settings.language_characters)
    foreign = ~pl.col("language").is_in([*settings.languages, UNKNOWN])
    chain.step(
        "language",
        reject=lambda f: f.filter(foreign).with_columns(value=pl.col("language_probability"), detail=pl.col("language")),
    )

    measured = measure(chain.frame)
    chain.frame = chain.frame.with_columns(
        broken_rule(measured, settings.quality).alias("broken"),
        *(measured[rule].alias(f"measured_{rule}") for rule in RULES),
    )
    for rule in RULES:
        chain.step(rule, reject=partial(_broken, rule=rule))
    chain.frame = chain.frame.select(*COLUMNS, "language", "language_probability")

    duplicates = exact_duplicates(chain.frame)
    chain.step("exact_duplicate", reject=lambda f: _duplicates(f, duplicates))
    near = near_duplicates(chain.frame, settings.near_duplicates)
    chain.step("near_duplicate", reject=lambda f: _duplicates(f, near))

    redacted = redact_frame(chain.frame, settings.personal_data)
    chain.step("personal_data", changed=redacted.frame, reject=lambda f: f.join(redacted.dense, on="document_id"))
    return Filtered(
        frame=chain.frame,
        rejects=pl.concat(chain.rejects).sort("document_id"),
        counts=pl.concat(chain.counts),
        personal_data=redacted.counts,
    )


def _broken(frame: pl.DataFrame, rule: str) -> pl.DataFrame:
    return frame.filter(pl.col("broken") == rule).with_columns(value=pl.col(f"measured_{rule}"))


def _duplicates(frame: pl.DataFrame, removed: pl.DataFrame) -> pl.DataFrame:
    return frame.join(removed, on="document_id").rename({"similarity": "value", "representative": "detail"})


class _Chain:
    """The documents still in, what each filter took out, and the counts before and after it."""

    def __init__(self, frame: pl.DataFrame):
        self.frame = frame
        self.sources = frame["source"].unique().sort()
        self.rejects = [pl.DataFrame(schema=REJECT_SCHEMA)]
        self.counts = [pl.DataFrame(schema=COUNT_SCHEMA)]

    def step(self, name: str, reject: Callable[[pl.DataFrame], pl.DataFrame], changed: pl.DataFrame | None = None) -> None:
        """Applies one filter: `changed` replaces the texts, then what `reject` selects from them is taken out."""
        before = self._sizes("in")
        frame = self.frame if changed is None else changed
        taken = reject(frame)
        self.frame = frame.join(taken.select("document_id"), on="document_id", how="anti", maintain_order="left")
        self.rejects.append(
            taken.select(
                pl.col(column).cast(dtype) if column in taken.columns else pl.lit(None, dtype).alias(column)
                for column, dtype in REJECT_SCHEMA.items()
                if column != "filter"
            )
            .with_columns(filter=pl.lit(name))
            .select(REJECT_SCHEMA.keys())
        )
        counts = before.join(self._sizes("out"), on="source").with_columns(filter=pl.lit(name))
        self.counts.append(counts.select(COUNT_SCHEMA.keys()))

    def _sizes(self, side: str) -> pl.DataFrame:
        sizes = self.frame.group_by("source").agg(
            pl.len().cast(pl.Int64).alias(f"documents_{side}"),
            pl.col("text").str.len_bytes().sum().cast(pl.Int64).alias(f"bytes_{side}"),
        )
        joined = self.sources.to_frame().join(sizes, on="source", how="left", maintain_order="left")
        return joined.fill_null(0)
