"""Preference batches: one file of the inbox, validated; bad rows go to the quarantine with their reasons."""

import json
from pathlib import Path

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.plots import bars
from assets.preferences.reading import MOST_CHARACTERS, read_comparisons, split_origin
from resources.annotator import RATINGS
from resources.errors import TampuError
from resources.inbox import batch_file
from resources.recipe import Check, Request, Run, artifact


class BatchConfig(dg.Config):
    """How long a comparison may be, and how much of a file may be bad."""

    most_bad: float = Field(0.5, ge=0, le=1, description="share of quarantined rows above which the batch is refused")
    most_characters: int = Field(MOST_CHARACTERS, ge=1, description="of a dialogue with its longer answer; the paper's 4,096 tokens, roughly")


def _raw_file(request: Request) -> dict[str, Path]:
    return {f"{request.partition}.jsonl": batch_file(request.home, str(request.partition))}


@artifact(
    "preferences/batches",
    partitions="batch",
    files=_raw_file,
    kinds={"polars", "json"},
    owners=["team:alignment"],
    checks=[
        Check("rows_add_up", blocking=True, description="accepted and quarantined rows are all that was read"),
        Check("mostly_valid", blocking=True, description="the share of quarantined rows is below the bound"),
    ],
)
def batches(run: Run, config: BatchConfig) -> None:
    """One file of comparisons: accepted rows, and quarantined rows with line and reason.

    The file is our own JSONL or a public set's, which `tampu ingest` hands in as it is. Every line is one or the other; nothing is dropped.
    """
    source = run.file(f"{run.partition}.jsonl")
    raw = source.read_bytes()
    result = read_comparisons(raw, most_characters=config.most_characters)
    if not result.read:
        raise TampuError(f"{source} holds no comparison: put one JSON object a line, or run `tampu collect` to make some")
    accepted, quarantined = result.accepted, result.quarantined
    for model_, version in sorted(
        {pair for side in ("chosen", "rejected") for pair in accepted.select(f"{side}_model", f"{side}_version").iter_rows() if pair[1]}
    ):
        asset, _, partition = model_.partition(":")[0].partition("@")
        run.cite(asset, version, partition=partition or None)
    run.write_frame("comparisons.parquet", accepted)
    run.write_frame("quarantine.parquet", quarantined)
    for name, value in (("read", result.read), ("accepted", accepted.height), ("quarantined", quarantined.height)):
        run.metric(name, value)
    lines = {number for number, _ in split_origin(raw).numbered}
    kept = {*accepted["line"], *quarantined["line"]}
    run.check(
        "rows_add_up",
        passed=accepted.height + quarantined.height == result.read and kept == lines,
        description=f"{accepted.height} accepted and {quarantined.height} quarantined of {result.read} read, from {len(lines)} lines",
        lines=len(lines),
        lines_without_a_trace=len(lines - kept),
    )
    run.check(
        "mostly_valid",
        passed=quarantined.height <= config.most_bad * result.read,
        description=f"{quarantined.height} of {result.read} rows quarantined: {json.dumps(result.reasons)[:300]}",
    )
    run.note("format", f"`{result.format}`")
    run.table("rows by rating", accepted.group_by("is_safety", "rating").len().sort("is_safety", "rating"))
    run.table("quarantine", quarantined.group_by("reason").agg(rows=pl.len(), first_line=pl.col("line").min()).sort("rows", descending=True))
    # Unsafe texts stay out of what a page shows at a glance.
    run.table("examples", accepted.filter(~pl.col("is_safety")).select("prompt", "chosen", "rejected", "rating").head(5))
    run.metric("safety_comparisons", int(accepted["is_safety"].sum()) if accepted.height else 0)
    counts = dict(accepted.group_by("rating").len().iter_rows())
    shares = {str(rating): counts.get(rating, 0) / max(1, accepted.height) for rating in RATINGS}
    run.plot("ratings", bars(shares, f"share of {accepted.height:,} comparisons, by rating"))
