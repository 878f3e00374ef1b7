"""`corpus/documents`: every declared source read into documents, each with its split."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from resources.external_sort import ExternalSort
from resources.parts import PartWriter
from resources.profiles import active
from resources.recipe import Check, Request, Run, artifact
from resources.sources import (
    DOCUMENT_SCHEMA,
    EMBEDDED,
    PLACE_SCHEMA,
    QUARANTINE_SCHEMA,
    Batch,
    Source,
    check_sources,
    nothing_in,
    repeated_rows,
    source_files,
    stream_documents,
)
from resources.splits import fraction_of


class DocumentsConfig(dg.Config):
    """Which text; without `sources` the embedded default (human conversations, and speeches as the factual source)."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("sources.path",)
    sources: list[dict[str, Any]] = Field(
        [], description="own sources: name, reader (jsonl, parquet, text, huggingface), path, licence, weight or share, factual, …"
    )
    conversations: int = Field(active().conversations, ge=1, description="conversations of the embedded default at most, chosen by hash")
    speeches_from_year: int = Field(active().speeches_from_year, description="first year of the embedded speeches")
    speeches_weight: float = Field(active().speeches_weight, gt=0, description="up-sampling of the embedded speeches")
    validation_share: float = Field(active().conversation_validation_share, ge=0, lt=1, description="share of conversations and speeches")
    test_share: float = Field(active().conversation_test_share, ge=0, lt=1, description="share of conversations and speeches")
    bad_rows_max: float = Field(0.05, ge=0, le=1, description="the run fails if this share of a source's rows, or more, is quarantined")


def declared(config: DocumentsConfig) -> list[Source]:
    """The sources that a config declares."""
    if config.sources:
        sources = [Source.from_dict(source) for source in config.sources]
        check_sources(sources)
        return sources
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
    checks=[
        Check("few_bad_rows", blocking=True, description="the share of quarantined rows of every source is below `bad_rows_max`"),
        Check("rows_add_up", blocking=True, description="rows kept, quarantined and not chosen are all that were read"),
    ],
)
def documents(run: Run, config: DocumentsConfig) -> None:
    """Raw text of all sources as documents; a conversation is one document, a line a turn. Rows that can not be read are quarantined."""
    sources = declared(config)
    with TemporaryDirectory(dir=run.directory) as work:
        sort = ExternalSort(Path(work))
        tally = _Tally()
        with PartWriter(run.path("quarantine.parquet"), QUARANTINE_SCHEMA, size="reason") as quarantine:
            for source in sources:
                for batch in _batches(source, config, tally):
                    sort.add(batch.frame)
                    quarantine.write(batch.quarantine)
                    tally.read(source, batch)
                run.log(f"{source.name}: {tally.rows[source.name]:,} rows read")
            gone = _repeated(sort, sources, quarantine, tally)
        with PartWriter(run.path("documents.parquet"), DOCUMENT_SCHEMA) as writer:
            for frame in sort.sorted():
                kept = frame.join(gone, on=["source", "file", "line"], how="anti") if gone.height else frame
                tally.kept(kept)
                writer.write(kept)
    for source in sources:
        if not tally.documents[source.name]:
            raise nothing_in(source, pl.read_parquet(run.path("quarantine.parquet")).filter(pl.col("source") == source.name))
    _report(run, config, sources, tally)


class _Tally:
    """Counts by source."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.quarantined: Counter[str] = Counter()
        self.not_chosen: Counter[str] = Counter()
        self.rows_kept: Counter[str] = Counter()
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.splits: Counter[tuple[str, str]] = Counter()

    def read(self, source: Source, batch: Batch) -> None:
        self.rows[source.name] += batch.rows
        self.quarantined[source.name] += batch.quarantine.height

    def kept(self, frame: pl.DataFrame) -> None:
        counted = frame.group_by("source", "split").agg(
            documents=pl.len(), bytes=pl.col("text").str.len_bytes().cast(pl.Int64).sum(), rows=pl.col("first").sum()
        )
        for source, split, number, size, rows in counted.iter_rows():
            self.documents[source] += number
            self.bytes[source] += size
            self.rows_kept[source] += rows
            self.splits[source, split] += number


def _batches(source: Source, config: DocumentsConfig, tally: _Tally) -> Iterator[Batch]:
    """A source's batches; of the embedded conversations no more than the config asks for, chosen by hash."""
    found = stream_documents(source, validation=config.validation_share, test=config.test_share)
    if source.reader != "chitchat":
        yield from found
        return
    batches = list(found)
    frame = pl.concat([batch.frame for batch in batches])
    if frame.height > config.conversations:
        tally.not_chosen[source.name] += frame.height - config.conversations
        place = pl.Series([fraction_of(group, "conversations") for group in frame["group"]])
        frame = frame.with_columns(place=place).sort("place").head(config.conversations).drop("place")
    yield Batch(frame, pl.concat([batch.quarantine for batch in batches]), sum(batch.rows for batch in batches))


def _repeated(sort: ExternalSort, sources: Sequence[Source], quarantine: PartWriter, tally: _Tally) -> pl.DataFrame:
    """Rows whose id another row of the source has, quarantined: (source, file, line) of those that go."""
    columns = ["source", *PLACE_SCHEMA]
    nothing = pl.DataFrame(schema={"source": pl.String, "file": pl.String, "line": pl.Int64})
    if not any(source.id_field for source in sources):
        return nothing
    name = pl.struct("source", "native").hash()
    rows = pl.col("first") & pl.col("native").is_not_null()
    hashes = np.concatenate([np.zeros(0, np.uint64), *(f.filter(rows).select(name).to_series().to_numpy() for f in sort.unsorted(columns))])
    hashes.sort()
    twice = pl.Series(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
    if not len(twice):
        return nothing
    places = pl.concat([f.filter(rows).filter(name.is_in(twice.implode())) for f in sort.unsorted(columns)])
    found = [nothing]
    for source in sources:
        gone, bad = repeated_rows(places.filter(pl.col("source") == source.name).select(PLACE_SCHEMA.keys()))
        quarantine.write(bad.select(pl.lit(source.name).alias("source"), pl.all()))
        tally.quarantined[source.name] += bad.height
        found.append(gone.select(pl.lit(source.name).alias("source"), pl.all()))
    return pl.concat(found)


def _report(run: Run, config: DocumentsConfig, sources: Sequence[Source], tally: _Tally) -> None:
    """Tables, numbers and checks."""
    table = pl.DataFrame(
        [
            {
                "source": source.name,
                "weight": float(source.weight),
                "share": source.share,
                "factual": source.factual,
                "dialogue": source.dialogue,
                "language": source.language,
                "licence": source.licence,
                "rows": tally.rows[source.name],
                "documents": tally.documents[source.name],
                "bytes": tally.bytes[source.name],
                "quarantined": tally.quarantined[source.name],
                "quarantined_share": tally.quarantined[source.name] / tally.rows[source.name],
            }
            for source in sources
        ],
        schema_overrides={"share": pl.Float64},
    )
    run.write_frame("sources.parquet", table)
    run.table("sources", table)
    splits = [{"source": source, "split": split, "len": number} for (source, split), number in sorted(tally.splits.items())]
    run.table("documents by split", pl.DataFrame(splits))
    run.metric("documents", tally.documents.total())
    run.metric("bytes", tally.bytes.total())
    run.metric("quarantined", tally.quarantined.total())
    worst = table.sort("quarantined_share", descending=True).row(0, named=True)
    if tally.quarantined.total():
        quarantine = pl.scan_parquet(run.path("quarantine.parquet")).head(20).collect()
        run.table("quarantine", quarantine)
    run.check(
        "few_bad_rows",
        passed=worst["quarantined_share"] < max(config.bad_rows_max, 1e-12),
        description=f"most in {worst['source']}: {worst['quarantined_share']:.2%} quarantined, allowed below {config.bad_rows_max:.2%}",
    )
    lost = {
        source.name: lost
        for source in sources
        if (lost := tally.rows[source.name] - tally.rows_kept[source.name] - tally.quarantined[source.name] - tally.not_chosen[source.name])
    }
    run.check("rows_add_up", passed=not lost, description=f"{tally.rows.total()} rows read; not accounted for: {lost or 0}")
