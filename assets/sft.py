"""Supervised fine-tuning: few demonstrations of instructions and safety, more real conversations; loss on answers only."""

import json
import random
from typing import ClassVar, Literal

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.fine_tuning import MASK_CHECKS, fine_tune
from resources.profiles import active
from resources.prompts.instructions import demonstration
from resources.prompts.pool import PoolSizes, template_prompts
from resources.prompts.prompt import Prompt
from resources.prompts.safety import borderline_demonstration, safe_demonstration
from resources.recipe import Check, ExecutionConfig, Run, artifact

DEMONSTRATIONS = {"task": demonstration, "unsafe": safe_demonstration, "borderline": borderline_demonstration}


class SftDataConfig(dg.Config):
    """Counts are small on purpose: the paper found some ten thousand good demonstrations enough, and RLHF needs something left to do."""

    tasks: int = Field(active().sft_tasks, ge=0, description="demonstrations of instructions")
    unsafe: int = Field(active().sft_unsafe, ge=0, description="refusals of adversarial prompts; 0 leaves safety data out")
    borderline: int = Field(active().sft_borderline, ge=0, description="answers to benign look-alikes")
    chats: int = Field(active().sft_chats, ge=0, description="dialogues cut from human conversations")
    chat_turns: int = Field(4, ge=2, description="messages a dialogue at most, user and assistant in turn")
    most_words: int = Field(30, ge=1, description="words a message at most; longer ones end the dialogue")
    validation_share: float = Field(active().validation_share, ge=0, lt=1, description="share of topics kept for validation")
    test_share: float = Field(active().test_share, ge=0, lt=1, description="share of topics kept for tests")
    seed: int = Field(active().seed, ge=0, description="which prompts, which of the right answers")


def dialogue_rows(conversations: list[tuple[str, list[str]]], count: int, *, turns: int, most_words: int) -> list[dict[str, object]]:
    """At most `count` dialogues of even length from the starts of conversations, each used once.

    A dialogue stops before a message longer than `most_words`; what is left must hold at least one exchange.
    """
    rows: list[dict[str, object]] = []
    for identity, spoken in conversations:
        if len(rows) == count:
            break
        kept: list[str] = []
        for turn in spoken[:turns]:
            if not 1 <= len(turn.split()) <= most_words:
                break
            kept.append(turn)
        kept = kept[: len(kept) // 2 * 2]
        if kept:
            messages = [{"role": "assistant" if index % 2 else "user", "content": turn} for index, turn in enumerate(kept)]
            rows.append({"family": "chat", "messages": json.dumps(messages, ensure_ascii=False), "topic": identity})
    return rows


def demonstration_row(prompt: Prompt, answer: str) -> dict[str, object]:
    """A training row: the prompt's dialogue with its answer."""
    messages = [*prompt.messages, {"role": "assistant", "content": answer}]
    return {"family": prompt.family, "messages": json.dumps(messages, ensure_ascii=False), "topic": prompt.topic}


@artifact(
    "sft/data",
    parents=["corpus/filtered"],
    kinds={"polars"},
    owners=["team:alignment"],
    checks=[
        Check("splits_are_disjoint", blocking=True, description="no topic or conversation is in two splits"),
        Check("not_empty", blocking=True, description="there are training rows"),
    ],
)
def data(run: Run, config: SftDataConfig) -> None:
    """Demonstrations: instructions with a right answer, refusals that explain and redirect, look-alikes answered, real dialogues."""
    from model.dialogue import TAGS

    conversations = run.parent("corpus/filtered").frame("conversations.parquet").sort("document_id")
    rows: list[dict[str, object]] = []
    for split, divide in (("train", 1), ("validation", 8)):
        shares = {"validation": config.validation_share, "test": config.test_share, "seed": config.seed}
        sizes = PoolSizes(tasks=config.tasks // divide, unsafe=config.unsafe // divide, borderline=config.borderline // divide, chats=0)
        made = [
            demonstration_row(prompt, DEMONSTRATIONS[prompt.family](prompt, config.seed)) | {"prompt_id": prompt.prompt_id}
            for prompt in template_prompts(split, sizes, **shares)  # type: ignore[arg-type]
        ]
        part = conversations.filter(pl.col("split") == split)
        spoken = [
            (identity, turns)
            for identity, turns in zip(part["document_id"], part["turns"].to_list(), strict=True)
            if not any(tag in turn for turn in turns for tag in TAGS)
        ]
        random.Random(config.seed).shuffle(spoken)
        chats = dialogue_rows(spoken, config.chats // divide, turns=config.chat_turns, most_words=config.most_words)
        rows += [{"split": split, "prompt_id": "", **row} for row in made + chats]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(("split", "family", "topic", "prompt_id", "messages"), pl.String))
    run.write_frame("examples.parquet", frame)
    counts = frame.group_by("split", "family").len().sort("split", "family")
    run.table("rows by split and family", counts)
    run.table("examples", frame.group_by("family", maintain_order=True).head(2))
    run.metric("examples", frame.height)
    shared = frame.group_by("family", "topic").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    run.check("splits_are_disjoint", passed=shared.is_empty(), description=f"{shared.height} topics in two splits", topics=shared.height)
    run.check("not_empty", passed="train" in frame["split"], description=f"{frame.height} rows")


class FineTuningConfig(dg.Config):
    """The paper's fine-tuning (section 3.1): two epochs, cosine schedule, loss on answers; batch and rate by profile."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("log_every", *ExecutionConfig.NOT_IDENTITY)
    epochs: int = Field(2, ge=1, description="passes over the data")
    repeats: int = Field(active().sft_repeats, ge=1, description="copies of each template-made row an epoch; conversations are never repeated")
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
    repeats = pl.when(pl.col("family") == "chat").then(1).otherwise(config.repeats)
    examples = run.parent("sft/data").frame("examples.parquet").with_columns(learn=pl.lit("answers"), repeats=repeats)
    fine_tune(run, config, examples, held_out_check="fell")
