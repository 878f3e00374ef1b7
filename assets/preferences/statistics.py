"""Statistics of preference batches, the shape of the paper's Table 26, and their picture over batches."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from assets.plots import panels
from resources.annotator import RATINGS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = "inbox"  # `source` of rows that no public set is named for
Counter = Callable[[list[str]], Sequence[int]]


def batch_statistics(comparisons: pl.DataFrame, count_tokens: Counter) -> pl.DataFrame:
    """A row a batch and source, in the batches' order: comparisons, mean turns and tokens, and the share of each rating.

    `count_tokens` gives the number of tokens of each text. As we read Tables 6 and 26, `tokens_example` is the whole dialogue with the mean
    of its two answers, `tokens_prompt` a message of the user, `tokens_response` the mean of the two answers.
    """
    dialogues = [json.loads(text) for text in comparisons["prompt"]]
    contents = [message["content"] for messages in dialogues for message in messages]
    texts = sorted({*contents, *comparisons["chosen"], *comparisons["rejected"]})
    tokens = dict(zip(texts, count_tokens(texts), strict=True))
    users = [[tokens[m["content"]] for m in messages if m["role"] == "user"] for messages in dialogues]
    measured = comparisons.select(
        "batch",
        "turns",
        "rating",
        "is_safety",
        source=pl.col("source").fill_null(OWN),
        dialogue=pl.Series([float(sum(tokens[m["content"]] for m in messages)) for messages in dialogues], dtype=pl.Float64),
        prompt=pl.Series([float(np.mean(lengths)) for lengths in users], dtype=pl.Float64),
        response=pl.Series([(tokens[a] + tokens[b]) / 2 for a, b in comparisons.select("chosen", "rejected").iter_rows()], dtype=pl.Float64),
    )
    return measured.group_by("batch", "source", maintain_order=True).agg(
        comparisons=pl.len().cast(pl.Int64),
        safety=pl.col("is_safety").sum().cast(pl.Int64),
        turns=pl.col("turns").mean(),
        tokens_example=(pl.col("dialogue") + pl.col("response")).mean(),
        tokens_prompt=pl.col("prompt").mean(),
        tokens_response=pl.col("response").mean(),
        **{rating: (pl.col("rating") == rating).mean() for rating in RATINGS},
    )


def total_row(statistics: pl.DataFrame) -> pl.DataFrame:
    """The statistics with a last row over all batches, weighted by comparisons."""
    weight = pl.col("comparisons") / pl.col("comparisons").sum()
    means = [name for name in statistics.columns if name not in ("batch", "source", "comparisons", "safety")]
    total = statistics.select(
        pl.lit("all").alias("batch"),
        pl.lit("all").alias("source"),
        pl.col("comparisons", "safety").sum(),
        *((pl.col(name) * weight).sum() for name in means),
    )
    return pl.concat([statistics, total.select(statistics.columns)])


def over_batches(statistics: pl.DataFrame) -> "Figure":
    """Comparisons, tokens and shares of the ratings over batches (Table 26 and Figure 25)."""
    by_batch = statistics.filter(pl.col("batch") != "all")
    names = [batch if source == OWN else f"{batch} ({source})" for batch, source in by_batch.select("batch", "source").iter_rows()]
    kinds = {"example": "tokens_example", "user message": "tokens_prompt", "response": "tokens_response"}
    return panels(
        names,
        {
            "comparisons": {"all": by_batch["comparisons"].to_list(), "safety": by_batch["safety"].to_list()},
            "tokens": {label: by_batch[name].to_list() for label, name in kinds.items()},
            "share of ratings": {rating: by_batch[rating].to_list() for rating in RATINGS},
        },
    )
