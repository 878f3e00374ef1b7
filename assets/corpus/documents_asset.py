"""`corpus/documents`: every declared source read into one frame of documents, each with its split."""

from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from resources.profiles import active
from resources.recipe import Check, Request, Run, artifact
from resources.sources import EMBEDDED, Source, read_documents, source_files
from resources.splits import fraction_of


class DocumentsConfig(dg.Config):
    """Which text; without `sources` the embedded default (human conversations, and speeches as the factual source)."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("sources.path",)
    sources: list[dict[str, Any]] = Field([], description="own sources: name, reader (jsonl, parquet, text), path, licence, weight, factual, …")
    conversations: int = Field(active().conversations, ge=1, description="conversations of the embedded default at most, chosen by hash")
    speeches_from_year: int = Field(active().speeches_from_year, description="first year of the embedded speeches")
    speeches_weight: float = Field(active().speeches_weight, gt=0, description="up-sampling of the embedded speeches")
    validation_share: float = Field(active().conversation_validation_share, ge=0, lt=1, description="share of conversations and speeches")
    test_share: float = Field(active().conversation_test_share, ge=0, lt=1, description="share of conversations and speeches")


def declared(config: DocumentsConfig) -> list[Source]:
    """The sources that a config declares."""
    if config.sources:
        return [Source.from_dict(source) for source in config.sources]
    chat, speeches = (vars(source) for source in EMBEDDED)
    return [
        Source(**chat),
        Source(**{**speeches, "first_year": config.speeches_from_year, "weight": config.speeches_weight}),
    ]


def _raw_files(request: Request) -> dict[str, Path]:
    return {f"{source.name}/{file.name}": file.path for source in declared(request.config) for file in source_files(source)}


@artifact(
    "corpus/documents",
    files=_raw_files,
    kinds={"polars", "parquet"},
    owners=["team:data"],
    checks=[Check("few_bad_rows", blocking=True, description="under 5 % of the rows of every source are quarantined")],
)
def documents(run: Run, config: DocumentsConfig) -> None:
    """Raw text of all sources as documents; a conversation is one document, a line a turn. Rows that can not be read are quarantined."""
    frames, bad = [], []
    weights: list[dict[str, Any]] = []
    for source in declared(config):
        found = read_documents(source, validation=config.validation_share, test=config.test_share)
        frame = found.frame
        if source.reader == "chitchat" and frame.height > config.conversations:
            place = pl.Series([fraction_of(group, "conversations") for group in frame["group"]])
            frame = frame.with_columns(place=place).sort("place").head(config.conversations).drop("place").sort("document_id")
        frames.append(frame)
        bad.append(found.quarantine)
        weights.append(
            {
                "source": source.name,
                "weight": source.weight,
                "factual": source.factual,
                "licence": source.licence,
                "documents": frame.height,
                "bytes": int(frame["text"].str.len_bytes().sum()),
                "quarantined": found.quarantine.height,
            }
        )
    frame = pl.concat(frames).sort("document_id")
    run.write_frame("documents.parquet", frame)
    run.write_frame("quarantine.parquet", pl.concat(bad))
    run.write_frame("sources.parquet", pl.DataFrame(weights))
    run.table("sources", pl.DataFrame(weights))
    run.table("documents by split", frame.group_by("source", "split").len().sort("source", "split"))
    run.metric("documents", frame.height)
    run.metric("bytes", int(frame["text"].str.len_bytes().sum()))
    run.metric("quarantined", sum(int(row["quarantined"]) for row in weights))
    worst = max(weights, key=lambda row: row["quarantined"] / (row["documents"] + row["quarantined"]))
    share = worst["quarantined"] / (worst["documents"] + worst["quarantined"])
    run.check("few_bad_rows", passed=share < 0.05, description=f"most in {worst['source']}: {share:.2%} quarantined")
