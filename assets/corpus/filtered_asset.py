"""`corpus/filtered`: the documents after normalisation, domains, language, quality, duplicates, repeated lines and personal data."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.corpus.domains import PERSONAL_SITES, checked, read_domains
from assets.corpus.duplicates import NearDuplicates
from assets.corpus.filters import KEPT_SCHEMA, REJECT_SCHEMA, FilterSettings, filter_corpus
from assets.corpus.personal_data import PersonalData
from assets.corpus.quality import quality_of
from assets.corpus.repeated_lines import RepeatedLines
from resources.parts import PartWriter, batches, processors, read_parts
from resources.recipe import Check, Request, Run, artifact

CONVERSATION_SCHEMA: dict[str, pl.DataType] = {"document_id": pl.String(), "split": pl.String(), "turns": pl.List(pl.String())}


class FilteredConfig(dg.Config):
    """The dials of the chain; every rule's own bounds are in its module."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("workers", "excluded_domains_file")
    languages: list[str] = Field(["en"], description="languages kept, beside texts whose language can not be told")
    language_threshold: float = Field(0.5, ge=0, le=1, description="probability below which the language is unknown (paper, appendix A.4)")
    excluded_domains: list[str] = Field([], description="sites left out beside the built-in list of people-search sites")
    excluded_domains_file: str = Field("", description="a file of further sites, one a line")
    quality: Literal["chat", "web"] = Field("chat", description="limits of the quality rules: loose ones for talk, or Gopher's and C4's")
    quality_limits: dict[str, float] = Field({}, description="single limits to change, such as words_min")
    near_duplicate_similarity: float = Field(0.7, gt=0, le=1, description="Jaccard similarity of word 5-grams from which documents are joined")
    repeated_line_documents: int = Field(10, ge=1, description="a line of eight words that stands in more documents stays in one of them")
    phone_region: str = Field("US", description="ISO 3166 country that telephone numbers without a country code are read in")
    workers: int = Field(0, ge=0, description="threads; 0 takes all processors")


def _raw_files(request: Request) -> dict[str, Path]:
    file = request.config.excluded_domains_file
    return {"excluded_domains": Path(file).expanduser()} if file else {}


def settings_of(config: FilteredConfig, dialogues: frozenset[str], domains: frozenset[str] = frozenset()) -> FilterSettings:
    """The chain's settings; `domains` are those of the file."""
    return FilterSettings(
        languages=tuple(config.languages),
        language_threshold=config.language_threshold,
        excluded_domains=PERSONAL_SITES | checked(config.excluded_domains) | domains,
        dialogues=dialogues,
        quality=quality_of(config.quality, config.quality_limits),
        near_duplicates=NearDuplicates(similarity=config.near_duplicate_similarity),
        repeated_lines=RepeatedLines(documents_max=config.repeated_line_documents),
        personal_data=PersonalData(phone_region=config.phone_region),
    )


@artifact(
    "corpus/filtered",
    parents=["corpus/documents"],
    files=_raw_files,
    kinds={"polars", "parquet"},
    owners=["team:data"],
    checks=[
        Check(
            "counts_add_up", blocking=True, description="by source and rule, documents in are documents out and the rejects that were written"
        ),
        Check("every_source_left", blocking=True, description="no source was rejected whole"),
        Check("every_split_left", blocking=True, description="training, validation and test text are left"),
    ],
)
def filtered(run: Run, config: FilteredConfig) -> None:
    """Documents kept by every filter, counts by source and rule, rejects with their reasons. No toxicity filter, as in the paper."""
    parent = run.parent("corpus/documents")
    sources = parent.frame("sources.parquet")
    file = read_domains(run.file("excluded_domains")) if config.excluded_domains_file else frozenset()
    settings = settings_of(config, frozenset(sources.filter("dialogue")["source"]), file)
    conversations: list[pl.DataFrame] = []
    kept: Counter[tuple[str, str]] = Counter()
    rejected: Counter[tuple[str, str]] = Counter()
    with (
        TemporaryDirectory(dir=run.directory) as work,
        PartWriter(run.path("documents.parquet"), KEPT_SCHEMA) as good,
        PartWriter(run.path("rejects.parquet"), REJECT_SCHEMA) as bad,
    ):

        def keep(frame: pl.DataFrame) -> None:
            good.write(frame)
            talk = frame.filter(pl.col("source") == "chitchat")
            conversations.append(talk.select("document_id", "split", turns=pl.col("text").str.split("\n")))
            kept.update({(s, p): n for s, p, n in frame.group_by("source", "split").len().iter_rows()})

        def reject(frame: pl.DataFrame) -> None:
            bad.write(frame)
            rejected.update({(s, f): n for s, f, n in frame.group_by("source", "filter").len().iter_rows()})

        result = filter_corpus(
            batches(read_parts(parent.file("documents.parquet"))),
            settings,
            kept=keep,
            rejected=reject,
            work=Path(work),
            workers=config.workers or processors(),
            say=run.log,
        )
    run.write_frame("personal_data.parquet", result.personal_data)
    run.write_frame("conversations.parquet", pl.concat([pl.DataFrame(schema=CONVERSATION_SCHEMA), *conversations]))
    run.rows("corpus_filters", result.counts)
    took = result.counts.filter(pl.col("documents_in") != pl.col("documents_out"))
    run.table("documents by filter", took.with_columns(rejected=pl.col("documents_in") - pl.col("documents_out")))
    run.table("personal data replaced", result.personal_data)
    run.metric("documents", good.rows)
    run.metric("rejected", bad.rows)
    run.metric("bytes", int(result.counts.group_by("source").last()["bytes_out"].sum()))
    given = dict(sources.select("source", "documents").iter_rows())
    left: Counter[str] = Counter()
    for (source, _), number in kept.items():
        left[source] += number
    wrong = uneven(result.counts, given, left, rejected)
    run.check("counts_add_up", passed=not wrong, description=f"{good.rows} kept and {bad.rows} rejected; not even: {', '.join(wrong) or 'none'}")
    empty = sorted(set(given) - set(left))
    run.check("every_source_left", passed=not empty, description=f"sources without a document left: {', '.join(empty) or 'none'}")
    splits = {split for _, split in kept}
    run.check("every_split_left", passed=splits == {"train", "validation", "test"}, description=f"splits: {', '.join(sorted(splits))}")


def uneven(counts: pl.DataFrame, given: dict[str, int], kept: Counter[str], rejected: Counter[tuple[str, str]]) -> list[str]:
    """Where the chain's counts are not those of the rows: documents by source that were `given`, `kept`, and `rejected` by filter."""
    wrong = []
    for source, number in sorted(given.items()):
        for name, before, after in counts.filter(pl.col("source") == source).select("filter", "documents_in", "documents_out").iter_rows():
            if before != number or before - after != rejected[source, name]:
                wrong.append(f"{source} at {name} ({before} in of {number}, {after} out, {rejected[source, name]} rejects)")
            number = after
        if number != kept[source]:
            wrong.append(f"{source} at the end ({number} counted, {kept[source]} written)")
    return wrong
