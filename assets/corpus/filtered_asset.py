"""`corpus/filtered`: the documents after normalisation, duplicates, language, quality and personal data."""

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.corpus.filters import FilterSettings, apply_filters
from resources.recipe import Check, Run, artifact


class FilteredConfig(dg.Config):
    """The dials of the chain; every rule's own bounds are in its module."""

    languages: list[str] = Field(["en"], description="languages kept, beside texts whose language can not be told")
    language_threshold: float = Field(0.5, ge=0, le=1, description="probability below which the language is unknown (paper, appendix A.4)")


@artifact(
    "corpus/filtered",
    parents=["corpus/documents"],
    kinds={"polars", "parquet"},
    owners=["team:data"],
    checks=[
        Check("counts_add_up", blocking=True, description="documents kept and rejected are all that came in"),
        Check("every_split_left", blocking=True, description="training, validation and test text are left"),
    ],
)
def filtered(run: Run, config: FilteredConfig) -> None:
    """Documents kept by every filter, counts by source and rule, rejects with their reasons. No toxicity filter, as in the paper."""
    documents = run.parent("corpus/documents").frame("documents.parquet")
    settings = FilterSettings(languages=tuple(config.languages), language_threshold=config.language_threshold)
    result = apply_filters(documents, settings)
    run.write_frame("documents.parquet", result.frame)
    run.write_frame("rejects.parquet", result.rejects)
    run.write_frame("personal_data.parquet", result.personal_data)
    conversations = result.frame.filter(pl.col("source") == "chitchat").select("document_id", "split", turns=pl.col("text").str.split("\n"))
    run.write_frame("conversations.parquet", conversations)
    run.rows("corpus_filters", result.counts)
    run.table("documents by filter", result.counts)
    run.table("personal data replaced", result.personal_data)
    by_rule = result.rejects.group_by("source", "filter").len().sort("source", "filter")
    run.table("rejects", by_rule)
    run.metric("documents", result.frame.height)
    run.metric("rejected", result.rejects.height)
    run.metric("bytes", int(result.frame["text"].str.len_bytes().sum()))
    total = result.frame.height + result.rejects.height
    run.check(
        "counts_add_up",
        passed=total == documents.height,
        description=f"{total} of {documents.height} documents accounted for",
    )
    splits = set(result.frame["split"])
    run.check(
        "every_split_left",
        passed=splits == {"train", "validation", "test"},
        description=f"splits: {', '.join(sorted(splits))}",
    )
