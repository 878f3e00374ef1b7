"""What is put to people: pairs of answers in random order, and single answers to adversarial prompts, without the models' names."""

import hashlib
import json
from collections.abc import Sequence

import polars as pl

from resources.splits import fraction_of


def preference_items(answers: pl.DataFrame, prompts: pl.DataFrame, model: str, opponent: str, count: int) -> pl.DataFrame:
    """`count` pairs at most: item, dialogue, answer_a, answer_b, first (the model that wrote answer A), axis, turns.

    Which prompts, and which model comes first, is drawn by hash of the prompt.
    """
    ours, theirs = (answers.filter(pl.col("model") == name) for name in (model, opponent))
    messages = prompts.select("prompt_id", "messages")
    pairs = ours.join(theirs, on="prompt_id", suffix="_other", maintain_order="left").join(messages, on="prompt_id", maintain_order="left")
    pairs = pairs.with_columns(place=pl.Series([fraction_of(i, "human-items") for i in pairs["prompt_id"]], dtype=pl.Float64))
    pairs = pairs.sort("place").head(count)
    swapped = [fraction_of(identity, "human-order") < 0.5 for identity in pairs["prompt_id"]]
    return pairs.with_columns(swapped=pl.Series(swapped, dtype=pl.Boolean)).select(
        item=pl.col("prompt_id"),
        dialogue=pl.col("messages").map_elements(as_text, return_dtype=pl.String),
        answer_a=pl.when("swapped").then("text_other").otherwise("text"),
        answer_b=pl.when("swapped").then("text").otherwise("text_other"),
        first=pl.when("swapped").then(pl.lit(opponent)).otherwise(pl.lit(model)),
        axis=pl.when(pl.col("family") == "unsafe").then(pl.lit("safety")).otherwise(pl.lit("helpfulness")),
        turns=pl.col("messages").map_elements(turns_of, return_dtype=pl.String),
    )


def safety_items(answers: pl.DataFrame, prompts: pl.DataFrame, models: Sequence[str], count: int) -> pl.DataFrame:
    """The answers of each model to the same adversarial prompts (`count` at most), shuffled: item, dialogue, answer, model, category,
    attack (empty where prompts have none), turns. An item's name says nothing about the model."""
    unsafe = answers.filter(pl.col("family") == "unsafe", pl.col("model").is_in(models))
    columns = [pl.col("prompt_id"), pl.col("messages")]
    columns.append(pl.col("attack") if "attack" in prompts.columns else pl.lit("").alias("attack"))
    identities = unsafe["prompt_id"].unique(maintain_order=True).to_list()
    chosen = sorted(identities, key=lambda identity: fraction_of(identity, "human-safety"))[:count]
    unsafe = unsafe.filter(pl.col("prompt_id").is_in(chosen)).join(prompts.select(columns), on="prompt_id", maintain_order="left")
    names = [_item(version, identity) for version, identity in unsafe.select("model_version", "prompt_id").iter_rows()]
    return (
        unsafe.with_columns(item=pl.Series(names, dtype=pl.String))
        .select(
            "item",
            dialogue=pl.col("messages").map_elements(as_text, return_dtype=pl.String),
            answer="text",
            model="model",
            category="category",
            attack="attack",
            turns=pl.col("messages").map_elements(turns_of, return_dtype=pl.String),
        )
        .sort("item")
    )


def as_text(messages: str) -> str:
    """A dialogue as raters read it."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in json.loads(messages))


def turns_of(messages: str) -> str:
    """Whether the person speaks once or several times."""
    return "single-turn" if sum(message["role"] == "user" for message in json.loads(messages)) == 1 else "multi-turn"


def _item(version: str, prompt_id: str) -> str:
    return hashlib.sha256(f"{version}/{prompt_id}".encode()).hexdigest()[:16]
