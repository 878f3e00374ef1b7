"""Preference batches: one file of the inbox, validated; bad rows go to the quarantine with their reasons."""

import json
from pathlib import Path

import dagster as dg
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.preferences.schema import read_comparisons
from resources.errors import TampuError
from resources.inbox import batch_file
from resources.recipe import Check, Request, Run, artifact


class BatchConfig(dg.Config):
    """How much of a file may be bad."""

    most_bad: float = Field(0.5, ge=0, le=1, description="share of quarantined rows above which the batch is refused")


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
    """One file of comparisons: accepted rows, quarantined rows with line and reason, and the paper's batch statistics (Table 26)."""
    source = run.file(f"{run.partition}.jsonl")
    raw = source.read_bytes()
    result = read_comparisons(raw)
    read = sum(bool(line.strip()) for line in raw.split(b"\n"))
    if read == 0:
        raise TampuError(f"{source} holds no comparison: put one JSON object a line, or run `tampu collect` to make some")
    accepted, quarantined = result.accepted, result.quarantined
    for model_, version in sorted(
        {pair for side in ("chosen", "rejected") for pair in accepted.select(f"{side}_model", f"{side}_version").iter_rows()}
    ):
        asset, _, partition = model_.partition(":")[0].partition("@")
        run.cite(asset, version, partition=partition or None)
    run.write_frame("comparisons.parquet", accepted)
    run.write_frame("quarantine.parquet", quarantined)
    for name, value in (("read", read), ("accepted", accepted.height), ("quarantined", quarantined.height)):
        run.metric(name, value)
    run.check("rows_add_up", passed=accepted.height + quarantined.height == read, description=f"{read} rows read")
    run.check(
        "mostly_valid",
        passed=quarantined.height <= config.most_bad * read,
        description=f"{quarantined.height} of {read} rows quarantined: {json.dumps(result.reasons)[:300]}",
    )
    run.table("rows by rating", accepted.group_by("is_safety", "rating").len().sort("is_safety", "rating"))
    run.table("quarantine", quarantined.group_by("reason").len().sort("len", descending=True))
    run.table("examples", accepted.select("prompt", "chosen", "rejected", "rating").head(5))
    run.metric("safety_comparisons", int(accepted["is_safety"].sum()) if accepted.height else 0)
