"""Rejection sampling, second half: the base model fine-tuned on SFT data, the best samples and the round's distilled data."""

import json

import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.fine_tuning import MASK_CHECKS, fine_tune
from assets.sft import REAL, FineTuningConfig
from resources.profiles import active
from resources.recipe import Check, Run, artifact


class PolicyConfig(FineTuningConfig):
    """As SFT, from the base model again (section 3.2.3), with the best samples of this round and, from a stated round on, of all before."""

    pool_rounds_from: int = Field(
        3, ge=1, description="first round that also learns from the best samples of all earlier rounds (the paper: V4)"
    )
    repeats: int = Field(active().policy_repeats, ge=1, description="copies of each template-made demonstration an epoch")
    best_samples_repeats: int = Field(active().best_samples_repeats, ge=1, description="copies of each best sample an epoch")


CHECKS = [
    *MASK_CHECKS,
    Check("fell", blocking=False, description="the loss on held-out answers is below the base model's"),
]
PARENTS = [
    "pretraining/base_model",
    "tokenizer/sentencepiece",
    "sft/data",
    "rlhf/samples",
    "rlhf/ghost_attention_data",
    "rlhf/context_distillation_data",
]


def best_samples(scored: pl.DataFrame, prompts: pl.DataFrame) -> pl.DataFrame:
    """The finished answer with the highest reward for each prompt, as training rows; the first of equals."""
    best = (
        scored.filter(pl.col("finished") & (pl.col("text").str.strip_chars() != ""))
        .sort("reward", "sample", descending=[True, False])
        .unique("prompt_id", keep="first", maintain_order=True)
        .join(prompts.select("prompt_id", "messages", "topic"), on="prompt_id", maintain_order="left")
    )
    dialogues = [
        json.dumps([*json.loads(messages), {"role": "assistant", "content": text}], ensure_ascii=False)
        for messages, text in best.select("messages", "text").iter_rows()
    ]
    return best.select("family", "topic", "prompt_id", "reward").with_columns(
        messages=pl.Series(dialogues, dtype=pl.String), split=pl.lit("train"), learn=pl.lit("answers")
    )


def policy_data(run: Run, config: PolicyConfig, *, ghost_attention: bool, context_distillation: bool) -> pl.DataFrame:
    """The fine-tuning rows of a round: SFT data, best samples, and the two distilled sets where the round has them."""
    columns = ["split", "family", "messages", "learn", "origin", "repeats"]
    sft = run.parent("sft/data").frame("examples.parquet")
    repeats = pl.when(pl.col("family").is_in(REAL)).then(1).otherwise(config.repeats)
    parts = [sft.with_columns(learn=pl.lit("answers"), origin=pl.lit("demonstrations"), repeats=repeats)]
    sources = [run.parent("rlhf/samples")]
    if run.this_round.number >= config.pool_rounds_from:
        sources += run.history("rlhf/samples")
    bags = [best_samples(s.frame("samples.parquet"), s.frame("prompts.parquet")) for s in sources]
    pooled = pl.concat(bags).sort("reward", descending=True, maintain_order=True).unique("prompt_id", keep="first", maintain_order=True)
    parts.append(pooled.with_columns(origin=pl.lit("best samples"), repeats=pl.lit(config.best_samples_repeats)))
    for wanted, asset in ((ghost_attention, "rlhf/ghost_attention_data"), (context_distillation, "rlhf/context_distillation_data")):
        artifact_ = run.parent(asset)
        if wanted and artifact_.applied:
            parts.append(artifact_.frame("examples.parquet").with_columns(origin=pl.lit(asset), repeats=pl.lit(1)))
    return pl.concat([part.select(columns).cast({"repeats": pl.Int64}) for part in parts])


@artifact(
    "rlhf/policy",
    parents=PARENTS,
    history=("rlhf/samples",),
    partitions="round",
    kinds={"pytorch"},
    owners=["team:alignment"],
    pool="trainer",
    checks=CHECKS,
)
def policy(run: Run, config: PolicyConfig) -> None:
    """Rejection sampling fine-tuning: base model + SFT data + best samples + Ghost Attention and context distillation data."""
    examples = policy_data(run, config, ghost_attention=True, context_distillation=True)
    run.table("rows by origin", examples.group_by("origin", "split", maintain_order=True).len())
    fine_tune(run, config, examples, held_out_check="fell")
