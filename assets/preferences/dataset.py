"""The preference data of a round: every batch accepted so far, divided by prompt hash alone."""

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.preferences.statistics import OWN, batch_statistics, over_batches, total_row
from resources.errors import TampuError
from resources.manifests import natural
from resources.profiles import active
from resources.recipe import Check, Run, artifact
from resources.splits import split_of


class DatasetConfig(dg.Config):
    """The held-out part; the paper keeps 1,000 comparisons a batch."""

    held_out_share: float = Field(active().held_out_share, gt=0, lt=1, description="share of prompts, decided by their hash, never trained on")
    most_held_out: int = Field(1000, ge=1, description="held-out comparisons a batch; what is beyond is set aside, not trained on")


@artifact(
    "preferences/dataset",
    parents=["preferences/batches", "tokenizer/sentencepiece"],
    partitions="round",
    kinds={"polars"},
    owners=["team:alignment"],
    checks=[
        Check("no_prompt_crosses", blocking=True, description="no prompt is in both the training and the held-out part"),
        Check("held_out_is_bounded", blocking=True, description="no batch has more held-out comparisons than the paper's 1,000"),
        Check("both_parts", blocking=True, description="there are comparisons to train on and held-out ones"),
    ],
)
def dataset(run: Run, config: DatasetConfig) -> None:
    """All comparisons up to this round, duplicates across batches removed, with statistics a batch (the paper's Table 26).

    A hash of the prompt alone divides them, so that no prompt crosses. Held-out comparisons beyond 1,000 a batch are set aside.
    """
    from model.tokenizer_files import load_chat

    batches = sorted(run.parents("preferences/batches"), key=lambda batch: natural(batch.partition))
    frames = [batch.frame("comparisons.parquet").with_columns(batch=pl.lit(batch.partition)) for batch in batches]
    if not sum(frame.height for frame in frames):
        raise TampuError("the preference dataset would be empty: run `tampu collect` or put a file of comparisons into the inbox")
    together = pl.concat(frames)
    chat = load_chat(run.parent("tokenizer/sentencepiece").path)
    # Batches know Llama 2's tags; an imported chat format has others.
    tagged = pl.any_horizontal(pl.col(name).str.contains_any(list(chat.tags)) for name in ("prompt", "chosen", "rejected"))
    run.metric("holds_a_tag", int(together.select(tagged.sum()).item()))
    together = together.filter(~tagged)
    unique = together.unique(["prompt_id", "chosen", "rejected", "annotator"], keep="first", maintain_order=True)
    held_out_ids = [
        split_of(identity, validation=0.0, test=config.held_out_share, salt="preferences") == "test" for identity in unique["prompt_id"]
    ]
    unique = unique.with_columns(held_out=pl.Series(held_out_ids, dtype=pl.Boolean))
    place = pl.col("prompt_id").cum_count().over("batch", "held_out")
    unique = unique.with_columns(
        part=pl.when(~pl.col("held_out"))
        .then(pl.lit("train"))
        .when(place <= config.most_held_out)
        .then(pl.lit("held_out"))
        .otherwise(pl.lit("set_aside"))
    ).drop("held_out")
    run.write_frame("comparisons.parquet", unique)

    statistics = batch_statistics(unique, lambda texts: [len(ids) for ids in chat.tokenizer.encode_batch(texts)])
    quarantined = {str(batch.partition): int(batch.metrics["quarantined"]) for batch in batches}
    facts = ("batch", "source", "comparisons", "turns", "tokens_example", "tokens_prompt", "tokens_response")
    run.rows("preference_batches", [{**row, "quarantined": quarantined[row["batch"]]} for row in statistics.select(facts).iter_rows(named=True)])
    run.table("batches", total_row(statistics))
    run.plot("batches", over_batches(statistics))
    origin = pl.col("source").fill_null(OWN)
    parts = unique.group_by("part", "is_safety", origin).len().sort("part", "is_safety", "source")
    run.table("parts", parts)
    counts = dict(unique.group_by("part").len().iter_rows())
    run.metric("comparisons", unique.height)
    run.metric("train", counts.get("train", 0))
    run.metric("held_out", counts.get("held_out", 0))
    run.metric("set_aside", counts.get("set_aside", 0))
    run.metric("duplicates", together.height - unique.height)
    crossing = unique.group_by("prompt_id").agg(pl.col("part").replace("set_aside", "held_out").n_unique()).filter(pl.col("part") > 1)
    run.check("no_prompt_crosses", passed=crossing.is_empty(), description=f"{crossing.height} prompts cross")
    most = max(unique.filter(pl.col("part") == "held_out").group_by("batch").len()["len"], default=0)
    aside = counts.get("set_aside", 0)
    run.check(
        "held_out_is_bounded",
        passed=most <= config.most_held_out,
        description=f"{most} at most a batch; {aside} more of held-out prompts are set aside and not trained on",
    )
    run.check("both_parts", passed=min(counts.get("train", 0), counts.get("held_out", 0)) > 0, description=str(counts))
