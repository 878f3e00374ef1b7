"""Supervised fine-tuning of the base model on the demonstrations; loss on answers only."""

from typing import ClassVar, Literal

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.fine_tuning import MASK_CHECKS, fine_tune
from resources.profiles import active
from resources.recipe import Check, ExecutionConfig, Run, artifact

# Families of real dialogues, which an epoch sees once; template-made rows are repeated.
REAL = ("chat", "own")


class FineTuningConfig(dg.Config):
    """The paper's fine-tuning (section 3.1): two epochs, cosine schedule, loss on answers; batch and rate by profile."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("log_every", *ExecutionConfig.NOT_IDENTITY)
    epochs: int = Field(2, ge=1, description="passes over the data")
    repeats: int = Field(active().sft_repeats, ge=1, description="copies of each template-made row an epoch; real dialogues are never repeated")
    context: int = Field(active().context, ge=32, description="tokens a packed sequence")
    batch: int = Field(active().sft_batch, ge=1, description="packed sequences a step")
    learning_rate: float = Field(active().sft_learning_rate, gt=0, description="peak of the cosine schedule")
    warmup_share: float = Field(0.03, ge=0, le=0.5, description="share of steps with rising rate (our choice)")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="bf16 products with fp32 weights, norms and softmaxes, or fp32")
    seed: int = Field(active().seed, ge=0, description="order of the data")
    log_every: int = Field(20, ge=1, description="steps between lines of the training log")
    execution: ExecutionConfig = Field(ExecutionConfig(), description="how the training is run")


@artifact(
    "sft/model",
    parents=["sft/data", "pretraining/base_model", "tokenizer/sentencepiece"],
    kinds={"pytorch"},
    owners=["team:alignment"],
    pool="trainer",
    checks=[
        *MASK_CHECKS,
        Check("fell", blocking=False, description="the loss on held-out answers is below the base model's"),
    ],
)
def model_(run: Run, config: FineTuningConfig) -> None:
    """The base model fine-tuned on the demonstrations; keeps the weights after the first epoch as a second variant to compare."""
    repeats = pl.when(pl.col("family").is_in(REAL)).then(1).otherwise(config.repeats)
    examples = run.parent("sft/data").frame("examples.parquet").with_columns(learn=pl.lit("answers"), repeats=repeats)
    fine_tune(run, config, examples, held_out_check="fell")
