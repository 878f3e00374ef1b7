"""Human evaluation: paired, order-randomised items for people to rate, and their ratings where they have come back."""

import json
from pathlib import Path

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from resources.errors import TampuError
from resources.recipe import Check, Request, Run, artifact
from resources.splits import fraction_of

# The 7-point scale of the paper's appendix A.3.7, from the first answer's side.
SCALE = ("A much better", "A better", "A slightly better", "about the same", "B slightly better", "B better", "B much better")


class HumanRatingsConfig(dg.Config):
    """How many items are put to people."""

    items: int = Field(100, ge=1, description="pairs of answers, chat model against SFT")


def _ratings_file(request: Request) -> dict[str, Path]:
    path = request.home / "ratings" / f"{request.partition}.csv"
    return {path.name: path} if path.is_file() else {}


@artifact(
    "evaluation/human_ratings",
    parents=["evaluation/answers", "rlhf/prompts"],
    partitions="round",
    files=_ratings_file,
    kinds={"polars", "csv"},
    owners=["team:evaluation"],
    checks=[Check("order_is_balanced", blocking=False, description="either model comes first in 30 to 70 % of the items")],
)
def human_ratings(run: Run, config: HumanRatingsConfig) -> None:
    """`items.csv` for raters (answers A and B in an order drawn by hash). Put their ratings into `$TAMPU_HOME/ratings/<round>.csv` with
    columns item, rater, rating (A much better … about the same … B much better) and materialize again: they land in `human_ratings`."""
    frame = run.parent("evaluation/answers").frame("answers.parquet")
    prompts = run.parent("rlhf/prompts").frame("prompts.parquet").select("prompt_id", "messages")
    ours = frame.filter(pl.col("model") == "rlhf/chat_model")
    theirs = frame.filter(pl.col("model") == "sft/model")
    pairs = ours.join(theirs, on="prompt_id", suffix="_sft", maintain_order="left").join(prompts, on="prompt_id", maintain_order="left")
    pairs = pairs.with_columns(place=pl.Series([fraction_of(i, "human-items") for i in pairs["prompt_id"]])).sort("place").head(config.items)
    swapped = [fraction_of(identity, "human-order") < 0.5 for identity in pairs["prompt_id"]]
    items = pairs.with_columns(swapped=pl.Series(swapped)).select(
        item=pl.col("prompt_id"),
        dialogue=pl.col("messages").map_elements(_as_text, return_dtype=pl.String),
        answer_a=pl.when("swapped").then("text_sft").otherwise("text"),
        answer_b=pl.when("swapped").then("text").otherwise("text_sft"),
        first=pl.when("swapped").then(pl.lit("sft/model")).otherwise(pl.lit("rlhf/chat_model")),
        axis=pl.when(pl.col("family") == "unsafe").then(pl.lit("safety")).otherwise(pl.lit("helpfulness")),
    )
    items.drop("first").write_csv(run.path("items.csv"))
    items.select("item", "first").write_csv(run.path("order.csv"))
    ratings = _imported(run, items)
    run.rows("human_ratings", ratings)
    run.metric("items", items.height)
    run.metric("ratings", len(ratings))
    first = sum(swapped) / len(swapped) if swapped else 0.0
    run.check("order_is_balanced", passed=0.3 <= first <= 0.7, description=f"SFT comes first in {first:.0%} of {len(swapped)} items")
    run.table("items", items.filter(pl.col("axis") == "helpfulness").head(5))


def _as_text(messages: str) -> str:
    return "\n".join(f"{m['role']}: {m['content']}" for m in json.loads(messages))


def _imported(run: Run, items: pl.DataFrame) -> list[dict[str, object]]:
    """Rows of `human_ratings`: rating 1 (the opponent is much better) to 7 (the model is much better)."""
    if not run.files:
        return []
    path = next(iter(run.files.values()))
    ratings = pl.read_csv(path)
    missing = {"item", "rater", "rating"} - set(ratings.columns)
    if missing:
        raise TampuError(f"{path}: column {sorted(missing)[0]!r} is missing; wanted are item, rater, rating")
    first = dict(items.select("item", "first").iter_rows())
    axis = dict(items.select("item", "axis").iter_rows())
    rows: list[dict[str, object]] = []
    for number, (item, rater, rating) in enumerate(ratings.select("item", "rater", "rating").iter_rows(), start=2):
        if item not in first:
            raise TampuError(f"{path}, line {number}: item {item!r} is not in items.csv of this round")
        if rating not in SCALE:
            raise TampuError(f"{path}, line {number}: rating {rating!r} is none of {', '.join(SCALE)}")
        place = SCALE.index(rating) + 1
        value = place if first[item] == "sft/model" else 8 - place
        rows.append(
            {
                "item": item,
                "rater": str(rater),
                "model": "rlhf/chat_model",
                "opponent": "sft/model",
                "rating": str(value),
                "axis": axis[item],
            }
        )
    return rows
